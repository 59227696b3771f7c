"""Uploads to servers that have forgotten an upload when the request to complete it is repeated."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from arkloop.shared.errors import StorageUnavailable
from arkloop.shared.files import incoming
from arkloop.shared.files.s3_storage import PART_BYTES, S3Storage
from tests.blank_settings import BLANK

_BEGUN = b"<R><Bucket>files</Bucket><Key>org/1</Key><UploadId>first</UploadId></R>"
_NO_UPLOAD = b"<Error><Code>NoSuchUpload</Code><Message>It is absent.</Message></Error>"
SIZE = PART_BYTES + 3


class _Server(ThreadingHTTPServer):
    """A server that drops the response to the first request that completes an upload."""

    def __init__(self, missing_at: str, stored: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.missing_at = missing_at  # the method and the query that get a 404
        self.stored = stored  # the size of the object afterwards; None: there is none
        self.completions = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        self._read()
        if "uploadId" not in parse_qs(urlsplit(self.path).query):
            self._respond(200, _BEGUN)
            return
        self.server.completions += 1
        if self.server.completions == 1:
            self.close_connection = True
        else:
            self._respond(404, _NO_UPLOAD)

    def do_PUT(self) -> None:
        self._read()
        if self.server.missing_at == "PUT":
            self._respond(404, _NO_UPLOAD)
        else:
            self._respond(200, b"", ETag='"1"')

    def do_HEAD(self) -> None:
        if self.server.stored is None:
            self._respond(404, b"")
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(self.server.stored))
            self.end_headers()

    def do_DELETE(self) -> None:
        self._respond(404, _NO_UPLOAD)

    def _read(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _respond(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def storage_at(*, missing_at: str = "", stored: int | None) -> Iterator[S3Storage]:
    with _Server(missing_at, stored) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield S3Storage(
            replace(
                BLANK,
                s3_bucket="files",
                s3_endpoint_url=f"http://127.0.0.1:{server.server_port}",
                s3_access_key_id="arkloop",
                s3_secret_access_key="secret-of-the-tests",
            )
        )
        server.shutdown()


def test_an_upload_whose_last_response_was_lost_is_stored() -> None:
    """The object is there with all of its bytes, whatever the response to the repetition is."""
    with storage_at(stored=SIZE) as storage:
        assert SIZE == incoming.store(storage, "org/1", [b"a" * PART_BYTES, b"abc"]).size


@pytest.mark.parametrize(("missing_at", "stored"), [("", None), ("", SIZE - 1), ("PUT", SIZE)])
def test_an_upload_that_is_absent_is_unavailable(missing_at: str, stored: int | None) -> None:
    """A client that gets 503 sends the file again; a missing object would be an internal error."""
    with storage_at(missing_at=missing_at, stored=stored) as storage:
        with pytest.raises(StorageUnavailable):
            incoming.store(storage, "org/1", [b"a" * PART_BYTES, b"abc"])
