"""The first minutes: from a clone to an answer in the browser, by what the terminal prints."""

import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.acceptance.test_browser import needs_chromium
from tests.waiting import eventually
from tests.web_server import ROOT

#: The folder for pictures of each step; without it there are none.
PICTURES = os.environ.get("FIRST_CHAT_PICTURES")
INSTALL_SECONDS = 900
EMBEDDED_SERVERS = "tests/cli/dev/test_embedded_postgres.py tests/shared/storage/test_schema.py"
KEEPS_THE_CACHE = {"warm": {}, "empty": {"PIP_CACHE_DIR": "pip-cache"}}

pytestmark = [
    pytest.mark.first_chat,
    pytest.mark.browser,
    pytest.mark.timeout(2 * INSTALL_SECONDS),
    pytest.mark.skipif(
        not os.environ.get("NEED_FIRST_CHAT"),
        reason="it installs everything in a clone: make test-first-chat",
    ),
    needs_chromium,
]


@dataclass
class Terminal:
    """A terminal of its own for a command; `text` is what was printed, without colours."""

    process: subprocess.Popen[bytes]
    _read: list[bytes] = field(default_factory=list)

    @property
    def text(self) -> str:
        printed = b"".join(self._read).decode(errors="replace").replace("\r\n", "\n")
        return re.sub(r"\x1b\[[0-9;]*m", "", printed)

    def line(self, start: str, seconds: float) -> str:
        """Wait for a line that starts so, and return the rest of it."""
        pattern = re.compile(rf"^{re.escape(start)}(.*)\n", re.MULTILINE)

        def has_come() -> bool:
            assert self.process.poll() is None, self.text
            return bool(pattern.search(self.text))

        eventually(has_come, seconds=seconds)
        found = pattern.search(self.text)
        assert found is not None
        return found[1].strip()

    def read(self, descriptor: int) -> None:
        while True:
            try:
                data = os.read(descriptor, 65_536)
            except OSError:  # the command and its children have ended
                return
            self._read.append(data)


@contextmanager
def typed(line: str, folder: Path, environ: dict[str, str]) -> Iterator[Terminal]:
    """Type a command on a terminal; at the end, Ctrl-C."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["/bin/sh", "-c", line],
        cwd=folder,
        env=environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(process)
    reader = threading.Thread(target=terminal.read, args=(ours,), daemon=True)
    reader.start()
    try:
        yield terminal
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(100)
        reader.join(10)
        os.close(ours)


@pytest.mark.parametrize("cache", KEEPS_THE_CACHE)
def test_a_clone_answers_in_the_browser(browser: Browser, tmp_path: Path, cache: str) -> None:
    """`make dev` in a fresh clone prints an address and a key; with them a message is answered, in
    parts as they come. The seconds of each step are printed.

    With the cache, the clone is below a folder that only its owner may enter, such as root's home:
    the unprivileged account that runs root's Postgres cannot reach it. The demo and the tests of
    the embedded servers run there, too.
    """
    is_closed = cache == "warm"
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o700 if is_closed else 0o755)
    began = last = time.monotonic()
    steps: dict[str, float] = {}

    def done(step: str) -> None:
        nonlocal last
        steps[step], last = time.monotonic() - last, time.monotonic()

    clone = tmp_path / "arkloop"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    environ = {n: v for n, v in os.environ.items() if not n.startswith(("ARKLOOP_", "VIRTUAL_"))}
    environ |= {n: str(tmp_path / folder) for n, folder in KEEPS_THE_CACHE[cache].items()}
    done("clone")
    with typed("exec make dev OPTIONS='--port 0'", clone, environ) as terminal:
        terminal.line("Done: ", INSTALL_SECONDS)
        done("install")
        terminal.line("Ready on ", 300)
        address = terminal.line("The console is at ", 60)
        key = terminal.line("Sign in with this API key: ", 60)
        done("start")
        page = browser.new_page(viewport={"width": 1200, "height": 740})
        page.goto(address)
        page.get_by_label("API key").fill(key)
        _picture(page, "sign-in")
        page.get_by_role("button", name="Sign in", exact=True).click()
        write = page.get_by_role("link", name="Write a message")
        expect(write).to_be_visible(timeout=60_000)
        done("sign in")
        _picture(page, "first-page")
        write.click()
        page.get_by_label("Message", exact=True).fill("What is the capital of France?")
        _picture(page, "message")
        page.get_by_role("button", name="Send").click()
        said = page.locator(".run .markdown")
        expect(said).not_to_be_empty(timeout=200_000)
        done("first words")
        expect(page.get_by_role("button", name="Stop")).to_have_count(0, timeout=200_000)
        done("the rest")
        _picture(page, "answer")
        page.close()
        seconds = time.monotonic() - began
        if PICTURES:
            (Path(PICTURES) / "terminal.txt").write_text(terminal.text)
    shown = ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps.items())
    print(f"\nFrom the clone to an answer, {cache} cache of packages: {seconds:.0f} s ({shown})")
    for target in (["demo"], ["test", f"TESTS={EMBEDDED_SERVERS}"]) if is_closed else []:
        subprocess.run(["make", *target], cwd=clone, env=environ, check=True)


def _picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")
