"""Servers on several addresses, and what a model gets of them by http_fetch."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

from arkloop.shared.security.egress import Policy
from arkloop.worker.tools import CallInfo, http_fetch
from tests.worker.recorded_run import RUN, RecordedRun

HERE = Policy.of(["127.0.0.2/32"])
Answer = Callable[[], Iterable[bytes]]


class Server:
    """Answers each connection by its path, from raw bytes; counts connections, keeps requests."""

    def __init__(
        self,
        host: str,
        answers: dict[str, Answer] | None = None,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self._tls = tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=64)
        self.host, self.port = host, self._listener.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self.answers = answers or {}
        self.connections = 0
        self.requests: list[bytes] = []
        self.hung_up = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        if self._tls is not None:
            try:
                connection = self._tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                read = connection.recv(65536)
                if not read:
                    return
                request += read
                if not request.startswith(b"GET "):
                    connection.sendall(b"This is no TLS.\r\n")
                    return
            self.requests.append(request)
            path = request.split(b" ")[1].decode()
            try:
                for piece in self.answers[path]():
                    connection.sendall(piece)
            except OSError:
                self.hung_up.set()


def page(
    body: bytes | str, content_type: str = "text/plain", status: int = 200, **more: str
) -> Any:
    """Build a whole response, of a stated length."""
    encoded = body.encode() if isinstance(body, str) else body
    headers = {"Content-Type": content_type, "Content-Length": str(len(encoded))}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
    return lambda: [f"HTTP/1.1 {status} X\r\n{head}\r\n".encode(), encoded]


def redirect(location: str, status: int = 302) -> Answer:
    """Build a redirect with a body that nobody may see."""
    return page("internal secret", status=status, Location=location)


def fetch(url: str, policy: Policy = HERE, run: RecordedRun | None = None) -> str:
    """Return what the model gets."""
    arguments = {"url": url}
    http_fetch.http_fetch.check(arguments)
    info = CallInfo.of(RUN, "call", egress=policy)
    return http_fetch.http_fetch(run or RecordedRun(), info, arguments)


def served(server: Server, answer: Answer, **options: Any) -> str:
    """Return what the model gets of this response."""
    server.answers["/"] = answer
    return fetch(server.url, **options)
