"""The requests of workers that customers run."""

import select
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.service import Service, Unreachable

SIZES: list[int] = []


class _Handler(BaseHTTPRequestHandler):
    """A service that notes the length of each body."""

    def do_POST(self) -> None:
        SIZES.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    """Requests to a service on this machine."""
    SIZES.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made = Service(ServerAddress(f"http://127.0.0.1:{server.server_port}", "key"), "/x")
    yield made
    made.close()
    server.shutdown()
    server.server_close()


def test_text_in_any_language_is_as_long_as_its_utf_8(service: Service) -> None:
    """A checkpoint of 1 MiB fits into a body, whatever its characters are."""
    size = 1024 * 1024 // 3

    service.post("append", {"checkpoint": "\u5b57" * size})
    service.post("append", {"checkpoint": "\ud800"})

    assert 3 * size + 100 > SIZES[0] > 3 * size


def test_a_response_without_what_it_must_have_is_none(service: Service) -> None:
    """It is that of a gateway, and not of the service."""
    with pytest.raises(Unreachable, match="not that of the service"):
        service.post("poll", {}, fields=["runs"])


def _respond_after_the_end(
    listener: socket.socket, tls: ssl.SSLContext | None, asked: threading.Event
) -> None:
    """Respond to a request once its client has closed its half of the connection."""
    connection, _ = listener.accept()
    if tls is not None:
        connection = tls.wrap_socket(connection, server_side=True)
    with connection:
        sent = b""
        while not sent.endswith(b"{}"):
            sent += connection.recv(65_536)
        asked.set()
        closing = select.poll()
        closing.register(connection, select.POLLRDHUP)
        if closing.poll(60_000):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b'{"calls":1}')


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_response_that_is_on_its_way_at_the_end_arrives(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service learns that there will be no more requests, with TLS as well."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("NO_PROXY", "*")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("0.0.0.0").configure_cert(tls)
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        given = (listener, tls if scheme == "https" else None, asked)
        threading.Thread(target=_respond_after_the_end, args=given, daemon=True).start()
        # This machine, too; with a loopback address the environment's certificates do not count.
        url = f"{scheme}://0.0.0.0:{listener.getsockname()[1]}"
        service = Service(ServerAddress(url, "key"), "/x")

        def finish() -> None:
            asked.wait(60)
            service.finish()

        threading.Thread(target=finish, daemon=True).start()
        response = service.post("poll", {})
        service.close()

    assert {"calls": 1} == response
