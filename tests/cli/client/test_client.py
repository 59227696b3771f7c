"""The requests of the command line, and which responses to them are not the last word."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import pytest

from arkloop.cli.client.client import Client, Refused
from arkloop.cli.client.server_address import ServerAddress

Response = tuple[int, str, bytes]
#: Of every file that is uploaded here.
CONTENT = b"The meeting is at noon."
MORE_THAN_SOCKETS_HOLD = 32 * 1024 * 1024


@contextmanager
def _playing(
    *responses: Response, meanwhile: Callable[[], object] = lambda: None, path: str = ""
) -> Iterator[Client]:
    """Start a server with these responses, by status, content type and body; yield its client.

    `meanwhile` is called once the head of an upload has arrived.
    """
    left = list(responses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            meanwhile()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert CONTENT in body
            self.do_GET()

        def do_GET(self) -> None:
            status, kind, body = left.pop(0)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if status in (429, 503):
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    client = Client(ServerAddress(f"http://127.0.0.1:{server.server_port}{path}", "key"))
    yield client
    client.http.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [408, 502, 503, 504, 520, 524, 530])
def test_a_passing_failure_is_repeated(status: int) -> None:
    """A server that has responded before is given some time."""
    done = (200, "application/json", b"[]")
    with _playing(done, (status, "text/plain", b""), done) as client:
        assert [[], []] == [client.get("/runs"), client.get("/runs")]


@pytest.mark.parametrize("status", [429, 503])
def test_an_upload_among_others_is_repeated(tmp_path: Path, status: int) -> None:
    """An org has a few uploads at a time; the file is sent from its beginning again."""
    file, json = tmp_path / "notes.txt", "application/json"
    file.write_bytes(CONTENT)
    with _playing((status, json, b"{}"), (201, json, b'{"id": "x"}')) as client:
        assert {"id": "x"} == client.upload(file)


@pytest.mark.parametrize("tries", [1, 2])
def test_a_file_that_grows_is_sent_as_it_was(tmp_path: Path, tries: int) -> None:
    """A log is written to meanwhile: what it had at first is sent, by each try the same."""
    file, json = tmp_path / "app.log", "application/json"
    file.write_bytes(CONTENT)
    os.truncate(file, MORE_THAN_SOCKETS_HOLD)
    responses = (*[(429, json, b"{}")] * (tries - 1), (201, json, b'{"id": "x"}'))

    def grow() -> None:
        os.truncate(file, file.stat().st_size + 1_000_000)

    with _playing(*responses, meanwhile=grow) as client:
        assert {"id": "x"} == client.upload(file)


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    """The message names the file, of which the rest is gone."""
    file = tmp_path / "app.log"
    file.write_bytes(CONTENT)
    os.truncate(file, MORE_THAN_SOCKETS_HOLD)

    shrink = partial(os.truncate, file, len(CONTENT))
    with _playing((201, "application/json", b"{}"), meanwhile=shrink) as client:
        with pytest.raises(click.ClickException) as error:
            client.upload(file)

    assert f"{file} became shorter while it was sent." == error.value.message


def test_an_upload_beyond_the_limit_of_a_minute_is_not_repeated(tmp_path: Path) -> None:
    """Each try would count for the limit, too."""
    file, json = tmp_path / "notes.txt", "application/json"
    file.write_bytes(CONTENT)
    body = b'{"code": "rate_limit.exceeded", "message": "Too many.", "details": {"per_minute": 5}}'
    with _playing((429, json, body)) as client, pytest.raises(Refused) as refused:
        client.upload(file)
    end = "(429 rate_limit.exceeded) Try again in 1 s."
    assert f'Too many. {{"per_minute": 5}} {end}' == refused.value.message


def test_a_success_that_is_not_the_services_is_refused() -> None:
    """The page of a hotspot has 200 for any request: the message names where it came from."""
    with _playing((200, "text/html", b"<p>Log in")) as client:
        with pytest.raises(Refused) as refused:
            client.get("/runs")

        address = f"{client.server.url}/v1/runs"
    what = "responded with 200 and content that is not this service's: check ARKLOOP_URL."
    assert f"{address} {what}" == refused.value.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"code": 7, "message": "denied", "details": {}}',
        b'{"code": ["denied"], "message": "denied", "details": {}}',
        b'{"code": "denied", "message": null, "details": {}}',
        b'{"code": "denied", "message": "denied", "details": [{"@type": "x"}]}',
        b'["denied"]',
    ],
)
def test_an_error_in_the_shape_of_another_is_not_the_services(body: bytes) -> None:
    """Gateways have a code, a message and details of other types."""
    with _playing((403, "application/json", body)) as client:
        with pytest.raises(Refused) as refused:
            client.get("/runs")

        address = f"{client.server.url}/v1/runs"
    what = "responded with 403 without an error of this service: check ARKLOOP_URL."
    assert ("", f"{address} {what}") == (refused.value.code, refused.value.message)


@pytest.mark.parametrize(
    ("path", "advice"),
    [("", ""), ("/v1", " ARKLOOP_URL is the address without /v1.")],
)
def test_an_unknown_endpoint_is_named(path: str, advice: str) -> None:
    """What was asked for says what is wrong with the address, or that the service is older."""
    body = b'{"code": "http.not_found", "message": "No such endpoint.", "details": {}}'
    with _playing((404, "application/json", body), path=path) as client:
        with pytest.raises(Refused) as refused:
            client.get("/runs", limit=5)

        where = f"GET {client.server.url}/v1/runs?limit=5 (404 http.not_found)"
    assert f"No such endpoint. {where}{advice}" == refused.value.message
