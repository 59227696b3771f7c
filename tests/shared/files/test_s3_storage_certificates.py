"""Certificates of S3 servers that are not AWS's."""

import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trustme

from arkloop.shared.config import Settings
from arkloop.shared.files.s3_storage import S3Storage


class _Handler(BaseHTTPRequestHandler):
    """A server that has every bucket."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def url(authority: trustme.CA) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a rejected handshake
        server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"https://localhost:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def without_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def warning_at(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """Return what the check of the bucket logs, or ""."""
    caplog.clear()
    S3Storage(
        Settings(
            database_url="",
            redis_url="",
            broker_url="",
            jwt_secret="",
            s3_bucket="files",
            s3_endpoint_url=url,
            s3_access_key_id="arkloop",
            s3_secret_access_key="secret-of-the-tests",
        )
    ).check()
    return "\n".join(r.getMessage() for r in caplog.records if "S3" in r.getMessage())


def test_the_authorities_of_an_operator_are_trusted(
    authority: trustme.CA,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`SSL_CERT_FILE` names them for all servers, and `AWS_CA_BUNDLE` for this one before it."""
    own, others = tmp_path / "own.pem", tmp_path / "others.pem"
    authority.cert_pem.write_to_path(str(own))
    trustme.CA().cert_pem.write_to_path(str(others))
    rejected = "TLS error: certificate is not trusted"

    assert rejected in warning_at(url, caplog)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    assert "" == warning_at(url, caplog)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(others))
    assert rejected in warning_at(url, caplog)
    monkeypatch.setenv("SSL_CERT_FILE", str(others))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(own))
    assert "" == warning_at(url, caplog)


def test_what_is_wrong_with_the_certificate_is_logged(
    authority: trustme.CA,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server is there: a start of it would change nothing."""
    authority.cert_pem.write_to_path(str(tmp_path / "own.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))

    why = warning_at(url.replace("localhost", "127.0.0.1"), caplog)

    assert "TLS error: " in why
    assert "hostname '127.0.0.1' doesn't match" in why
