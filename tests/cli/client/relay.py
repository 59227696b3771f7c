"""A TCP relay in front of a server, for connections that break or go silent."""

import selectors
import socket
import threading
from contextlib import suppress
from typing import Self


class Relay:
    """Passes bytes on; `cut_after` bytes of an event stream its connection is reset."""

    def __init__(self, port: int) -> None:
        self.cut_after: int | None = None
        self.cuts = 0
        self.passing = threading.Event()
        self.passing.set()
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.passing.set()
        # shutdown: close alone does not wake a thread that is in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection that is open."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open += (client, server)
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, selectors.DefaultSelector() as ready, suppress(OSError):
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            streamed: int | None = None
            while True:
                for key, _ in ready.select():
                    data = key.fileobj.recv(4096)
                    self.passing.wait()
                    if not data:
                        return
                    if key.fileobj is server:
                        if streamed is None and b"text/event-stream" in data:
                            # What comes with the head counts too: a stream that begins late
                            # brings kilobytes of it.
                            streamed = len(data.partition(b"\r\n\r\n")[2])
                        elif streamed is not None:
                            streamed += len(data)
                        if streamed is not None and self.cut_after is not None:
                            over = streamed - self.cut_after
                            if over >= 0:
                                key.data.sendall(data[: max(0, len(data) - over)])
                                self.cuts += 1
                                return
                    key.data.sendall(data)
