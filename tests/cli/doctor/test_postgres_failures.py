"""Advice of `arkloop doctor` about a Postgres that executes no statement."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
import trustme

from arkloop.cli.doctor import postgres_checks
from arkloop.cli.doctor.findings import Finding


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an authority, of another one, and of a client."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    authority.private_key_pem.write_to_path(str(folder / "authority.key"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other.pem"))
    client = authority.issue_cert("client")
    client.private_key_pem.write_to_path(str(folder / "open.key"))
    client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
    (folder / "open.key").chmod(0o644)
    (folder / "text").write_text("no certificate")
    return folder


@contextmanager
def tls_server(certificates: Path, host: str, until: datetime) -> Iterator[int]:
    """Listen as a Postgres does that speaks TLS, and is gone after the handshake."""
    authority = trustme.CA.from_pem(
        (certificates / "authority.pem").read_bytes(), (certificates / "authority.key").read_bytes()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    begun = until - timedelta(days=30)
    authority.issue_cert(host, not_before=begun, not_after=until).configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):  # closed at the end
            while True:
                client, _ = listener.accept()
                with client, suppress(OSError):
                    client.recv(8)
                    client.sendall(b"S")
                    with context.wrap_socket(client, server_side=True) as wrapped:
                        wrapped.recv(1000)

    Thread(target=serve, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def finding_at(url: str) -> Finding:
    engine = postgres_checks.engine_of(url)
    [finding] = postgres_checks.of_server("postgres", "ARKLOOP_DATABASE_URL", url, engine)
    engine.dispose()
    return finding


@pytest.mark.parametrize(
    ("options", "days", "advice"),
    [
        ("sslmode=verify-full&sslrootcert={}/authority.pem", 9, "Name a host in ARKLOOP_DATABASE"),
        ("sslmode=verify-ca&sslrootcert={}/authority.pem", -1, "Renew the server's certificate"),
        ("sslmode=verify-ca&sslrootcert={}/other.pem", 9, "Renew the server's certificate if it"),
        ("sslmode=verify-ca&sslrootcert={}/none.pem", 9, "Correct sslrootcert in ARKLOOP_DATABASE"),
        ("sslmode=verify-ca&sslrootcert={}/text", 9, "Correct sslrootcert in ARKLOOP_DATABASE_URL"),
        ("sslmode=require&sslcert={0}/client.pem&sslkey={0}/open.key", 9, "Correct sslkey in ARK"),
        ("sslmode=require&sslcert={0}/client.pem&sslkey={0}/none.key", 9, "Correct sslkey in ARK"),
        ("sslmode=require&sslcert={0}/text&sslkey={0}/open.key", 9, "Correct sslcert in ARKLOOP"),
    ],
)
def test_certificates_are_no_matter_of_firewalls(
    certificates: Path, options: str, days: int, advice: str
) -> None:
    """The advice names the certificate or the file that libpq's message is about."""
    with tls_server(certificates, "db.internal", datetime.now() + timedelta(days=days)) as port:
        url = f"postgresql://127.0.0.1:{port}/runs?{options.format(certificates)}"
        finding = finding_at(url)

    assert finding.advice.startswith(advice), finding
