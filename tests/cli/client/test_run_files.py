"""Runs of `arkloop run` that are refused, or seem to be, and the files uploaded for them."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from arkloop.cli.client import client
from arkloop.cli.client.run import run
from tests.closed_port import closed_port

Response = tuple[int, bytes]
MAY_HAVE_STARTED = "The run may have started: see `arkloop runs list`."
#: A connection that is closed without a response.
CUT: Response = (0, b"")


def _error(status: int, code: str) -> Response:
    return status, json.dumps({"code": code, "message": f"It is {code}.", "details": {}}).encode()


class _Server:
    """A service that stores files, and has one response to all deletions, and one to all runs, or
    another to the first; Ctrl-C is pressed during the upload with this number.
    """

    def __init__(self) -> None:
        self.to_runs: Response = (500, b"")
        self.to_first_run: Response | None = None
        self.to_deletions: Response = (204, b"")
        self.interrupted_upload = 0
        self.uploads = 0
        self.runs = 0
        self.deleted: list[str] = []
        played = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/files":
                    played.uploads += 1
                    if played.uploads == played.interrupted_upload:
                        os.kill(os.getpid(), signal.SIGINT)
                    file = {"id": f"f{played.uploads}", "media_type": "text/plain"}
                    self._respond(201, json.dumps(file).encode())
                else:
                    played.runs += 1
                    first, played.to_first_run = played.to_first_run, None
                    self._respond(*(first or played.to_runs))

            def do_DELETE(self) -> None:
                played.deleted.append(self.path.rpartition("/")[2])
                self._respond(*played.to_deletions)

            def _respond(self, status: int, body: bytes) -> None:
                if not status:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def run_with_files(self, folder: Path) -> Result:
        """Call `arkloop run` with two files."""
        options = []
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text("at noon")
            options += ["--file", str(folder / name)]
        return _run(self.url, *options)


def _run(url: str, *options: str) -> Result:
    environ = {"ARKLOOP_URL": url, "ARKLOOP_API_KEY": "key"}
    return CliRunner().invoke(run, ["Look", *options], env=environ)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.01)
    played = _Server()
    yield played
    played.http.shutdown()
    played.http.server_close()


UNCERTAIN = [
    CUT,
    (502, b""),
    (504, b"<p>Gateway"),
    (403, b"<p>Firewall"),
    _error(503, "service.unavailable"),
    _error(409, "idempotency.in_progress"),
    _error(500, "internal.error"),
]


@pytest.mark.parametrize("response", UNCERTAIN)
def test_a_run_without_files_may_have_started_as_well(server: _Server, response: Response) -> None:
    """A user who repeats the command would have a second run."""
    server.to_runs = response

    done = _run(server.url)

    assert 1 == done.exit_code
    assert done.stderr.endswith(f" {MAY_HAVE_STARTED}\n")


def test_a_run_that_no_server_has_got_did_not_start() -> None:
    """Without a connection nothing was sent."""
    done = _run(f"http://127.0.0.1:{closed_port()}")

    assert 1 == done.exit_code
    assert "is unreachable" in done.stderr
    assert MAY_HAVE_STARTED not in done.stderr


@pytest.mark.parametrize("response", UNCERTAIN)
def test_files_of_a_run_that_may_have_started_are_kept(
    server: _Server, tmp_path: Path, response: Response
) -> None:
    """A gateway passes the request on and then fails: the run would be without its files."""
    server.to_runs = response

    done = server.run_with_files(tmp_path)

    assert (1, 2, []) == (done.exit_code, server.uploads, server.deleted)
    assert done.stderr.endswith(f"{MAY_HAVE_STARTED} Its files are kept.\n")


@pytest.mark.parametrize("first", [(504, b""), _error(409, "idempotency.in_progress")])
@pytest.mark.parametrize(
    ("status", "code", "deleted"),
    [
        (401, "auth.invalid_key", []),
        (403, "auth.forbidden", []),
        (429, "limits.requests", []),
        (404, "routes.not_found", ["f1", "f2"]),
    ],
)
def test_files_are_kept_where_a_repetition_is_refused_unseen(
    server: _Server, tmp_path: Path, first: Response, status: int, code: str, deleted: list[str]
) -> None:
    """The limit on requests says nothing of the attempt before; a response about the run does."""
    server.to_first_run = first
    server.to_runs = _error(status, code)

    done = server.run_with_files(tmp_path)

    assert (1, deleted) == (done.exit_code, server.deleted)
    assert (MAY_HAVE_STARTED in done.stderr) is (deleted == [])


def test_files_of_a_run_that_is_refused_are_deleted(server: _Server, tmp_path: Path) -> None:
    """The service's own reason is printed."""
    server.to_runs = _error(404, "routes.not_found")

    done = server.run_with_files(tmp_path)

    assert (1, ["f1", "f2"]) == (done.exit_code, server.deleted)
    assert "Error: It is routes.not_found. (404 routes.not_found)\n" == done.stderr


def test_files_that_cannot_be_deleted_hide_no_reason(server: _Server, tmp_path: Path) -> None:
    """A key may lack the permission to delete: each file is tried, and the refusal is printed."""
    server.to_runs = _error(404, "routes.not_found")
    server.to_deletions = _error(403, "auth.forbidden")

    done = server.run_with_files(tmp_path)

    assert (1, ["f1", "f2"]) == (done.exit_code, server.deleted)
    assert "Error: It is routes.not_found. (404 routes.not_found)\n" == done.stderr


@pytest.mark.parametrize("upload", [1, 2])
def test_ctrl_c_during_an_upload_ends_the_command_without_a_run(
    server: _Server, tmp_path: Path, upload: int
) -> None:
    """It says so at once; no other file is sent, and those before are deleted."""
    server.interrupted_upload = upload

    done = server.run_with_files(tmp_path)

    deleted = ["f1", "f2"][:upload]
    assert (130, upload, deleted) == (done.exit_code, server.uploads, server.deleted)
    assert (0, "") == (server.runs, done.stdout)
    assert "Cancelling; press Ctrl-C again to exit without waiting.\n" == done.stderr
