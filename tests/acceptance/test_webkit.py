"""EventSource in WebKitGTK, which keeps what it has read of a frame when its connection is cut."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from arkloop.cli.dev.embedded_server import free_port
from tests.acceptance.streamed_runs import LONG
from tests.app_page import app_page
from tests.caller import Caller
from tests.cutting_proxy import cutting_proxy
from tests.system import System
from tests.waiting import eventually

DRIVER, DISPLAY = shutil.which("WebKitWebDriver"), shutil.which("Xvfb")
BROWSERS = sorted(Path("/usr/lib").glob("*/webkit*gtk-4.*/MiniBrowser"))
IS_THERE = bool(DRIVER and DISPLAY and BROWSERS)
pytestmark = [
    pytest.mark.webkit,
    pytest.mark.skipif(
        not IS_THERE and os.environ.get("NEED_WEBKIT") != "1",
        reason="WebKitGTK is not installed: make test-webkit",
    ),
]


@dataclass(frozen=True)
class WebKit:
    """A browser by WebDriver (W3C)."""

    session: httpx.Client

    def open(self, url: str) -> None:
        self._call("/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the function body in the page and return its result."""
        return self._call("/execute/sync", script=script, args=arguments)

    def _call(self, path: str, **body: Any) -> Any:
        response = self.session.post(path, json=body)
        assert response.is_success, response.text
        return response.json()["value"]


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """An X server without a screen."""
    assert DISPLAY is not None
    reading, writing = os.pipe()
    command = [DISPLAY, "-displayfd", str(writing), "-nolisten", "tcp"]
    with (
        open(reading) as number,
        subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as process,
    ):
        os.close(writing)
        yield f":{number.readline().strip()}"
        process.terminate()


@pytest.fixture
def webkit(display: str, tmp_path: Path) -> Iterator[WebKit]:
    assert DRIVER is not None
    port = free_port()
    environ = {
        **os.environ,
        "DISPLAY": display,
        "HOME": str(tmp_path),
        "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1",  # it needs namespaces; the page is ours
        "LIBGL_ALWAYS_SOFTWARE": "1",
    }
    command = [DRIVER, "--host=127.0.0.1", f"--port={port}"]
    options = {"binary": str(BROWSERS[-1]), "args": ["--automation"]}
    wanted = {"capabilities": {"alwaysMatch": {"webkitgtk:browserOptions": options}}}
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _answers(f"{url}/status"))
            made = httpx.post(f"{url}/session", json=wanted, timeout=60, trust_env=False).json()
            base = f"{url}/session/{made['value']['sessionId']}"
            with httpx.Client(base_url=base, timeout=60, trust_env=False) as session:
                yield WebKit(session)
                session.delete("")
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def test_a_browser_resumes_after_frames_that_were_cut(
    system: System, user: Caller, webkit: WebKit
) -> None:
    """Cuts anywhere in a frame, orderly ones and resets: each event exactly once, in order."""
    run_id = user.run(LONG)
    with (
        app_page() as origin,
        system.one_more_web_server(ARKLOOP_CORS_ORIGINS=origin) as api,
        # With this seed the first cut is within the first frame, before the browser has an id.
        cutting_proxy(api.settings.port, cuts=6, longest=4000, seed=3) as proxy,
    ):
        webkit.open(origin)
        url = f"{proxy.url}/v1/runs/{run_id}/events?ticket={user.ticket(run_id)}"
        webkit.run("follow(arguments[0], 'message')", url)
        is_over = "return source.readyState === EventSource.CLOSED"
        eventually(lambda: webkit.run(is_over))
        seen = webkit.run("return seen")

    assert 0 == proxy.cuts_left
    events = [[sent["seq"], sent] for sent in user.events(run_id)]
    assert [str(seq) for seq, _ in events] == [id_ for id_, _ in seen]
    assert events == [[int(id_), json.loads(data)] for id_, data in seen]
