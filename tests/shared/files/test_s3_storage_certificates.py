"""Certificates of S3 servers that are not AWS's."""

import os
import ssl
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trustme

from arkloop.shared.files.s3_storage import S3Storage
from arkloop.shared.files.storage import UnusableStorage
from tests.blank_settings import BLANK
from tests.closed_port import closed_port


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


def storage_at(url: str, bucket: str = "files") -> S3Storage:
    return S3Storage(
        replace(
            BLANK,
            s3_bucket=bucket,
            s3_endpoint_url=url,
            s3_access_key_id="arkloop",
            s3_secret_access_key="secret-of-the-tests",
            certificate_file=os.environ.get("SSL_CERT_FILE"),
        )
    )


def warning_at(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """Return what the check of the bucket logs, or ""."""
    caplog.clear()
    storage_at(url).check()
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


def test_a_file_that_openssl_reads_by_default_counts_if_it_is_named(
    authority: trustme.CA,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Some systems have one, with the authorities that an operator has added."""
    file = str(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(file)
    paths = ssl.get_default_verify_paths()._replace(cafile=file, openssl_cafile=file)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.setenv("SSL_CERT_FILE", file)

    assert "" == warning_at(url, caplog)


def test_the_advice_is_to_name_an_authority_for_s3_alone(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of all servers would replace the authorities of vendors and receivers."""
    advice = storage_at(url).check() or ""
    assert "AWS_CA_BUNDLE" in advice
    assert "SSL_CERT_FILE" not in advice

    others = str(tmp_path / "others.pem")
    trustme.CA().cert_pem.write_to_path(others)
    monkeypatch.setenv("AWS_CA_BUNDLE", others)
    assert f"Add its authority to {others}, which AWS_CA_BUNDLE" in (storage_at(url).check() or "")


def test_the_advice_fits_the_error(
    authority: trustme.CA, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a bucket is no sign of a certificate."""
    down = storage_at(f"http://127.0.0.1:{closed_port()}", bucket="certificates")
    assert (down.check() or "").startswith("Start it")

    authority.cert_pem.write_to_path(str(tmp_path / "own.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "own.pem"))
    another = storage_at(url.replace("localhost", "127.0.0.1"))
    assert (another.check() or "").startswith("Correct the host")
    assert storage_at(url).check() is None


@pytest.mark.parametrize(
    ("file", "why"), [("/nope", "cannot be read: No such file"), (__file__, "has no certificates")]
)
def test_authorities_of_s3_that_cannot_be_read_are_refused(
    url: str, monkeypatch: pytest.MonkeyPatch, file: str, why: str
) -> None:
    """No file could be stored or read; a server without TLS needs none."""
    monkeypatch.setenv("AWS_CA_BUNDLE", file)

    with pytest.raises(UnusableStorage, match=f"AWS_CA_BUNDLE, .*: '{file}' {why}"):
        storage_at(url).check()
    assert "Start it" in (storage_at(f"http://127.0.0.1:{closed_port()}").check() or "")
