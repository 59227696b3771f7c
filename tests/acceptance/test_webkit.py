"""Streams in WebKitGTK: it keeps what it has read of a frame when the connection is cut, and its
`fetch` withholds the end of what has arrived.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from arkloop.cli.dev.embedded_server import free_port
from tests.acceptance.streamed_runs import LONG
from tests.app_page import app_page
from tests.caller import Caller, script
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

#: Reads the stream as the console and the TypeScript client do.
_FOLLOW = """
const [path, token] = arguments
window.seen = []
const read = async () => {
  const response = await fetch(path, {headers: {Authorization: `Bearer ${token}`}})
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  for (;;) {
    const {value, done} = await reader.read()
    if (done) return
    text += value
    const frames = text.split('\\n\\n')
    text = frames.pop()
    for (const frame of frames) seen.push(JSON.parse(frame.match(/^data: (.*)$/m)[1]).type)
  }
}
read()
"""
#: Less than until the ping of an idle stream.
SOON = 3


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


def test_what_is_sent_last_is_not_withheld(user: Caller, webkit: WebKit) -> None:
    """Ends and requests for approval, each sent together with other events, and then silence."""
    webkit.open(f"{user.url}/console")
    thread_id = user.thread()
    webkit.run(_FOLLOW, f"/v1/threads/{thread_id}/events", user.token)

    def is_shown(kind: str, times: int) -> bool:
        return bool(times == webkit.run("return seen").count(kind))

    asking = script({"say": "One moment."}, {"tool": "calculator", "args": {"expression": "6*7"}})
    for number in range(1, 6):
        user.ended(user.start(thread_id, message="hello"))
        eventually(partial(is_shown, "run.completed", number), seconds=SOON)
        waiting = user.start(thread_id, message=asking, persona_id="careful")
        user.until(waiting, "phase", "waiting")
        eventually(partial(is_shown, "run.waiting_for_input", number), seconds=SOON)
        user.cancel(waiting)
        user.ended(waiting)
