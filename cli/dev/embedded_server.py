"""A database server from a wheel, run by us: what Postgres and Redis have in common."""

import itertools
import os
import signal
import socket
import subprocess
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Self

from arkloop.cli.dev.die_with_parent import dying_with_parent

READY_STEP_SECONDS = 0.01
STOP_SECONDS = 10
#: A server that ends at its start is started again for this long: right after a kill -9 its lock
#: file may name a process that is not quite gone.
RETRY_SECONDS = 2
#: Linux gives ports from 32768 on to outgoing connections: one of them could have taken the port
#: that was free a moment ago.
_PORTS = range(20_000, 32_000)
_PORTS_OF_A_PROCESS = 997
_turns = itertools.count()
#: Sockets by which this process keeps the ports that it found last: it may not have bound them yet.
_kept: deque[int] = deque()
_MOST_KEPT = 100


class ServerDidNotStart(Exception):
    """An embedded server ended, or was not ready in time; the message has its last output."""


class ServerInUse(ServerDidNotStart):
    """Another server uses the data folder; it may be about to end."""


class EmbeddedServer:
    """A server on one data folder; it dies with the process whose main thread started it.

    Either `start()` and `stop()` it (tests), or hand `prepare()` and `command()` to a supervisor.
    Use as a context manager to have it stopped in the end.
    """

    name = "server"
    stop_signal = signal.SIGTERM

    def __init__(self, data: Path) -> None:
        self.data = data.absolute()
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make the data folder usable; called before each start, with no server running."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command line; it stays in the foreground and ends with this process."""
        raise NotImplementedError

    def is_ready(self, pid: int) -> bool:
        """Return whether the server with this process id responds."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """The id of the process that `start` started, None when there is none."""
        return self._process.pid if self._process else None

    def start(self, timeout_seconds: float = 30) -> None:
        """Start and wait until it answers. Its output goes to `<data>.log`.

        Raises:
            ServerDidNotStart
        """
        self.data.parent.mkdir(parents=True, exist_ok=True)
        log = self.data.with_name(f"{self.data.name}.log")
        self.prepare()
        began = time.monotonic()  # a new data folder takes long on a busy machine
        while True:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    self.command(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            status = self._wait_until_ready(began + timeout_seconds)
            if status is None:
                return
            if time.monotonic() > began + RETRY_SECONDS:
                tail = log.read_text(errors="replace")[-2000:]
                raise ServerDidNotStart(f"{self.name} ended with status {status}:\n{tail}")
            time.sleep(READY_STEP_SECONDS * 10)
            self.prepare()

    def _wait_until_ready(self, deadline: float) -> int | None:
        """Wait for the server: None once it is ready, or the exit status if it ended first."""
        assert self._process is not None
        while not self.is_ready(self._process.pid):
            status = self._process.poll()
            if status is not None:
                self._process = None
                return status
            if time.monotonic() > deadline:
                self.stop()
                raise ServerDidNotStart(f"{self.name} was not ready in time")
            time.sleep(READY_STEP_SECONDS)
        return None

    def stop(self) -> None:
        """End the server in good order, by force after 10 s; the data stays."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(self.stop_signal)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """Stop, and remove what is not data."""
        self.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def tied(
        self, argv: list[str], *, user: str | None = None, folder: Path | None = None
    ) -> list[str]:
        """Wrap `argv` so that this process' end sends the server its own stop signal."""
        return dying_with_parent(argv, death_signal=self.stop_signal, user=user, folder=folder)


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on at this moment.

    No other call finds it while this process lives, or until it has found a hundred more: servers
    bind theirs seconds later. Each process begins with another one and takes them in turn, so that
    those which know nothing of this hardly ever find the same.

    Raises:
        ServerDidNotStart: all ports are in use.
    """
    first = os.getpid() * _PORTS_OF_A_PROCESS
    for _ in _PORTS:
        port = _PORTS[(first + next(_turns)) % len(_PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _keep(port)
            return port
    raise ServerDidNotStart(f"all ports from {_PORTS[0]} to {_PORTS[-1]} are in use")


def _keep(port: int) -> None:
    """Keep the port by a name that the kernel forgets at the end of this process.

    Raises:
        OSError: another process, or an earlier call, has it.
    """
    with socket.socket(socket.AF_UNIX) as name:
        name.bind(f"\0arkloop port {port}")
        _kept.append(name.detach())
    if len(_kept) > _MOST_KEPT:
        os.close(_kept.popleft())
