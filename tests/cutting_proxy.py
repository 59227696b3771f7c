"""A TCP proxy that cuts connections in the middle of whatever the server says."""

import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Close with a reset instead of a farewell.
_RESET = struct.pack("ii", 1, 0)


class CuttingProxy:
    """Each of the first `cuts` connections ends after a random number of the server's bytes.

    Every other cut is a reset, the rest look like an orderly end. The seed
    makes the lengths the same in every run of a test. Connections after the cuts have to wait
    until `is_open` is set, or are closed at once while `refuses` is true.
    """

    def __init__(self, target_port: int, *, cuts: int, longest: int, seed: int) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.refuses = False
        self.cuts_left = cuts
        self._longest = longest
        self._random = random.Random(seed)
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        # A shutdown wakes the accept; a close alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                cut = self.cuts_left > 0
                assert cut or self.is_open.wait(60)
                if self.refuses and not cut:
                    client.close()
                    continue
                self.cuts_left -= cut
                length = self._random.randint(1, self._longest) if cut else None
                thread = threading.Thread(
                    target=_serve,
                    args=(client, self._target_port, length, self.cuts_left % 2 == 0),
                )
                self._threads.append(thread)
                thread.start()


def _serve(client: socket.socket, target_port: int, length: int | None, reset: bool) -> None:
    """Pass on both ways until one side is gone or `length` bytes of the answer are through."""
    # One thread for both ways: a socket that another thread still reads is not closed by `close`.
    with client, socket.create_connection(("127.0.0.1", target_port)) as server, suppress(OSError):
        while True:
            for readable in select.select([client, server], [], [])[0]:
                data = readable.recv(65536)
                if not data:
                    return
                if readable is client:
                    server.sendall(data)
                    continue
                client.sendall(data[:length])
                if length is not None:
                    length -= len(data)
                    if length <= 0:
                        if reset:
                            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        return


@contextmanager
def cutting_proxy(
    target_port: int, *, cuts: int, longest: int = 2000, seed: int = 1
) -> Iterator[CuttingProxy]:
    """Run a proxy for the length of the block."""
    proxy = CuttingProxy(target_port, cuts=cuts, longest=longest, seed=seed)
    try:
        yield proxy
    finally:
        proxy.close()
