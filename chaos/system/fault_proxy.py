"""A TCP proxy that breaks connections in the ways that networks and dying hosts do.

It is a process of its own: in a thread of the chaos client, which follows hundreds of streams,
every chunk would wait for that client's interpreter lock. This is the handle; `proxy_process.py` is
the process.
"""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal, Self

from chaos.system.ports import listening_socket

_ROOT = Path(__file__).parents[2]
_ANSWER_SECONDS = 10

Direction = Literal["to_client", "to_server"]


class ProxyError(Exception):
    """The proxy's process has ended, or refused an order."""


class FaultProxy:
    """Listens on 127.0.0.1 and passes on to a TCP port or, with a path, to a unix socket.

    Each order is in force when its call returns; any thread may give one. The five modes replace
    each other; `cut` and `cut_answer_to` come on top of a mode and end with the next one.
    """

    def __init__(self, upstream: tuple[str, int] | Path) -> None:
        self._lock = threading.Lock()
        orders, theirs = socket.socketpair()
        with listening_socket() as listener, theirs:
            self.port = int(listener.getsockname()[1])
            command = [sys.executable, "-m", "chaos.system.proxy_process"]
            command += ["--listener", str(listener.fileno()), "--orders", str(theirs.fileno())]
            command += ["--upstream", _address(upstream)]
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                pass_fds=(listener.fileno(), theirs.fileno()),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is for the one who gives orders
            )
        orders.settimeout(_ANSWER_SECONDS)
        self._orders = orders
        self._answers = orders.makefile("rb")

    @property
    def pid(self) -> int:
        return self._process.pid

    def pass_on(self) -> None:
        """Pass every byte on in both directions, as fast as it comes."""
        self._order(mode="pass")

    def delay(self, seconds: float) -> None:
        """Hold each chunk for this time, in each direction."""
        self._order(mode="delay", seconds=seconds)

    def stall(self) -> None:
        """Accept and keep connections but move nothing, as if a host vanished without a word.

        What was sent meanwhile arrives when the stall ends.
        """
        self._order(mode="stall")

    def refuse(self) -> None:
        """Refuse new connections and reset the open ones, as if the server's process died."""
        self._order(mode="refuse")

    def half_open(self) -> None:
        """Drop responses to requests that arrive. Connections that lost one are reset by the next
        mode.
        """
        self._order(mode="half_open")

    def cut(
        self, after_bytes: int, direction: Direction = "to_client", connections: int | None = None
    ) -> None:
        """Reset each connection, or the next `connections`, after more bytes in one direction."""
        self._order(cut=after_bytes, direction=direction, connections=connections)

    def cut_now(self) -> int:
        """Reset every open connection; how many there were."""
        return int(self._order(cut_now=True)["reset"])

    def abandon(self) -> None:
        """Move nothing on the connections that are open now and tell neither end; new ones work.

        As a firewall does that forgets its connections, or a server that was replaced.
        """
        self._order(abandon=True)

    def cut_answer_to(self, pattern: bytes, times: int = 1) -> None:
        """Pass on a chunk of a client that has the pattern in it, and reset instead of the answer.

        The server has answered by then, so that what was asked is done.
        """
        self._order(pattern=pattern.hex(), times=times)

    def state(self) -> dict[str, Any]:
        """Return `mode`, `connections` now open, `accepted` and `reset` and `answers_cut` since the
        start, `to_client` and `to_server` in bytes.
        """
        return self._order()

    def close(self) -> None:
        """End the process, and with it every connection."""
        with self._lock:
            self._answers.close()
            # Its end of this pair reads the end of file, also when we are killed.
            self._orders.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _order(self, **order: Any) -> dict[str, Any]:
        with self._lock:
            try:
                self._orders.sendall(json.dumps(order).encode() + b"\n")
                line = self._answers.readline()
            except (OSError, ValueError) as error:
                raise ProxyError(f"the proxy on port {self.port} does not answer") from error
        if not line:
            raise ProxyError(f"the proxy on port {self.port} has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ProxyError(answer["error"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _address(upstream: tuple[str, int] | Path) -> str:
    return str(upstream) if isinstance(upstream, Path) else f"{upstream[0]}:{upstream[1]}"
