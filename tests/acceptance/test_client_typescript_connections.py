"""`clients/typescript` in Node.js and in a browser, with servers that are not the service."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Route

from tests.acceptance.test_browser import needs_chromium
from tests.ai_sdk_chat import needs_front_ends
from tests.ai_sdk_pages import MODULES, NODE, ROOT
from tests.played_streams import COMMENT, END, played_streams
from tests.typescript_client import called

pytestmark = needs_front_ends

#: What a page's call of the client at this address throws.
CALL_OF_A_PAGE = """
async ([url, call]) => {
  const { Arkloop } = await import("/page/index.js")
  const arkloop = new Arkloop(url, "token")
  try {
    if (call === "create") await arkloop.create({ message: "Hello" })
    else for await (const _ of arkloop.follow("run"));
  } catch (error) {
    return [error.name, error.status, error.message]
  }
  return null
}
"""


class Redirecting(BaseHTTPRequestHandler):
    """A server that has moved what is below `/old`, and notes each request."""

    status = 302
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        has_moved = self.path.startswith("/old/")
        body = b"" if has_moved else b'{"items": []}'
        self.send_response(self.status if has_moved else 200)
        if has_moved:
            self.send_header("Location", self.path.removeprefix("/old"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def redirecting_server(status: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the former address of a server that has moved, and the requests that it gets."""
    requests: list[str] = []
    handler = type("Handler", (Redirecting,), {"status": status, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/old", requests
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("call", "request_line"),
    [("create", "POST /old/v1/runs"), ("follow", "GET /old/v1/runs/run/events")],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(call: str, request_line: str, status: int) -> None:
    """The error names the target: a followed POST would be a GET of the list of runs."""
    with redirecting_server(status) as (url, requests):
        made = called(call, url=url)

    path = request_line.partition("/old")[2]
    assert [request_line] == requests
    message = f"{url}{path} responded with {status} and a redirect to {path}."
    assert ("ArkloopError", message) == (made["thrown"]["name"], made["thrown"]["message"])


def test_a_silent_server_is_an_error_of_its_own() -> None:
    """The last error is not that of a caller who has aborted, and says what was waited for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        made = called("follow", url=url, silenceMs=300, patience=200)

    message = f"No data from {url}/v1/runs/run/events for 30 s."
    assert ("TimeoutError", message) == (made["thrown"]["name"], made["thrown"]["message"])


def test_a_stream_without_a_body_is_no_contact() -> None:
    """A proxy that buffers passes the headers on alone: the error says so, instead of silence."""
    with played_streams(*[b""] * 7, END) as url:
        made = called("follow", url=url, silenceMs=200, patience=1_000)

    hint = "Its headers arrived: a proxy on the way may buffer the body."
    message = f"No data from {url}/v1/runs/run/events for 30 s. {hint}"
    assert ("TimeoutError", message) == (made["thrown"]["name"], made["thrown"]["message"])


def test_a_stream_with_a_comment_is_contact() -> None:
    """A run that waits for a person has no events, for longer than the patience lasts."""
    with played_streams(*[COMMENT] * 7, END) as url:
        made = called("follow", url=url, silenceMs=200, patience=1_000)

    assert ([2], None) == (made["seen"], made["thrown"])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client as a page imports it."""
    folder = tmp_path_factory.mktemp("client")
    command = [str(MODULES / ".bin" / "tsc"), "-p", str(ROOT / "clients" / "typescript")]
    environ = {**os.environ, "PATH": f"{NODE.parent}:{os.environ['PATH']}"}
    subprocess.run([*command, "--outDir", str(folder)], check=True, env=environ)
    return folder / "index.js"


def _of_a_page(context: BrowserContext, compiled: Path, url: str, call: str) -> Any:
    """Make the call in a page of the same origin; return what it throws, or None."""

    def serve(route: Route) -> None:
        if route.request.url.endswith(".js"):
            route.fulfill(content_type="text/javascript", body=compiled.read_text())
        else:
            route.fulfill(content_type="text/html", body="<title>A page</title>")

    context.route("**/page/*", serve)
    page = context.new_page()
    page.goto(f"{url}/page/index.html")
    return page.evaluate(CALL_OF_A_PAGE, [url, call])


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("call", ["create", "follow"])
def test_a_page_follows_no_redirect(context: BrowserContext, compiled: Path, call: str) -> None:
    """A browser does not show the target, so the error says that there is a redirect."""
    with redirecting_server(302) as (url, requests):
        thrown = _of_a_page(context, compiled, url, call)

    [request_line] = [one for one in requests if "/v1/" in one]
    path = request_line.partition("/old")[2]
    assert ["ArkloopError", 0, f"{url}{path} responded with a redirect."] == thrown


@pytest.mark.browser
@needs_chromium
def test_a_page_over_plain_http_creates_runs(context: BrowserContext, compiled: Path) -> None:
    """Each request has a key of its own, though such a page has no `crypto.randomUUID`."""
    keys: list[str | None] = []

    def create(route: Route) -> None:
        keys.append(route.request.header_value("Idempotency-Key"))
        route.fulfill(status=201, json={"run_id": "run"})

    context.route("**/v1/runs", create)

    thrown = [_of_a_page(context, compiled, "http://app.test", "create") for _ in range(2)]

    assert [None, None] == thrown
    assert 2 == len({key for key in keys if key})
    assert "undefined" == context.pages[-1].evaluate("typeof crypto.randomUUID")
