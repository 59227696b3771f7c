"""Removal from servers that answer 404, where AWS answers 204, for what is absent."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

from arkloop.shared.files.s3_storage import S3Storage
from tests.blank_settings import BLANK

_UPLOADS = b"""<ListMultipartUploadsResult>
<Upload><Key>org/1</Key><UploadId>first</UploadId></Upload>
<Upload><Key>org/1</Key><UploadId>second</UploadId></Upload>
</ListMultipartUploadsResult>"""
_NO_UPLOAD = b"<Error><Code>NoSuchUpload</Code><Message>It is absent.</Message></Error>"


class _Handler(BaseHTTPRequestHandler):
    """A server that lists two uploads of each key, and has neither them nor any object."""

    deleted: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._respond(200, _UPLOADS)

    def do_DELETE(self) -> None:
        self.deleted.append(self.path)
        self._respond(404, _NO_UPLOAD if "uploadId" in self.path else b"")

    def _respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def server_without_objects() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_absent_is_removed() -> None:
    """Neither the object nor an upload that ended meanwhile is an error; each is tried."""
    with server_without_objects() as url:
        settings = replace(
            BLANK,
            s3_bucket="files",
            s3_endpoint_url=url,
            s3_access_key_id="arkloop",
            s3_secret_access_key="secret-of-the-tests",
        )
        S3Storage(settings).remove("org/1")

    assert [
        "/files/org/1",
        "/files/org/1?uploadId=first",
        "/files/org/1?uploadId=second",
    ] == _Handler.deleted
