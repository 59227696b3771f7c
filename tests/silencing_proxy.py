"""A TCP proxy whose connections fall silent: they stay open, and nothing passes any more."""

import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class SilencingProxy:
    """Passes everything on until `silence` is called; connections made after that work."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.passed = 0  # bytes of the server
        self.silences = 0
        self.url = ""
        self._until: int | None = None

    def silence(self) -> None:
        self.silences += 1

    def silence_after(self, size: int) -> None:
        """Call `silence` once this many more bytes of the server have passed."""
        self._until = self.passed + size

    def count(self, size: int) -> None:
        self.passed += size
        if self._until is not None and self.passed >= self._until:
            self._until = None
            self.silence()


class _Handler(socketserver.BaseRequestHandler):
    proxy: SilencingProxy

    def handle(self) -> None:
        client, proxy, silences = self.request, self.proxy, self.proxy.silences
        server = socket.create_connection(("127.0.0.1", proxy.target_port))
        sides = [client, server]
        with server, suppress(OSError):
            while True:
                for readable in select.select(sides, [], [])[0]:
                    data = readable.recv(65536)
                    is_silent = silences != proxy.silences
                    if not data and is_silent and readable is server:
                        sides.remove(server)
                    elif not data:
                        return
                    elif not is_silent:
                        (server if readable is client else client).sendall(data)
                        proxy.count(len(data) if readable is server else 0)


@contextmanager
def silencing_proxy(target_port: int) -> Iterator[SilencingProxy]:
    """Run a proxy for the length of the block."""
    proxy = SilencingProxy(target_port)
    handler = type("_Of", (_Handler,), {"proxy": proxy})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield proxy
        server.shutdown()
