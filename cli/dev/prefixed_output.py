"""The output of many processes on one terminal: a coloured name in front of each line."""

import os
import select
import sys
import time
from collections import deque
from typing import TextIO

from arkloop.cli.output import printable

#: More than this waiting for a reader that does not read: the oldest lines are dropped.
MAX_WAITING_BYTES = 1 << 20
#: A pipe that is ready for writing takes so much without blocking (POSIX' PIPE_BUF on Linux).
_WRITE_BYTES = 4096
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)


class PrefixedOutput:
    """A writer of whole lines that never blocks: the supervisor must not wait for a reader."""

    def __init__(self, stream: TextIO | None = None, *, colour: bool | None = None) -> None:
        """Write to `stream`; `colour` None means on a terminal, unless NO_COLOR is set."""
        self._stream = stream or sys.stdout
        self.is_terminal = self._stream.isatty()
        coloured = self.is_terminal and not os.environ.get("NO_COLOR")
        self._colour = coloured if colour is None else colour
        self._names: dict[str, int] = {}
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        #: The reader has gone; lines are dropped from then on.
        self.is_closed = False

    def name(self, name: str) -> None:
        """Reserve a colour and the width of the column."""
        self._names.setdefault(name, _COLOURS[len(self._names) % len(_COLOURS)])

    def line(self, name: str, text: str) -> None:
        """Print one line of the process `name`."""
        self.name(name)
        width = max(map(len, self._names))
        prefix = f"{name:<{width}} |"
        if self._colour:
            prefix = f"\x1b[{self._names[name]}m{prefix}\x1b[0m"
        self.plain(f"{prefix} {printable(text)}")

    def plain(self, text: str) -> None:
        """Print a line of the supervisor itself, unchanged."""
        if self.is_closed:
            return
        data = text.encode(errors="backslashreplace") + b"\n"
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        while self._waiting_bytes > MAX_WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft())
            self._dropped += 1
        self.flush()

    def flush(self, timeout_seconds: float = 0) -> None:
        """Write what the reader takes now; wait up to `timeout_seconds` for it to take all."""
        try:
            descriptor = self._stream.fileno()
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            deadline = time.monotonic() + timeout_seconds
            while self._waiting and poll.poll(max(0, deadline - time.monotonic()) * 1000):
                self._write(descriptor)
        except (OSError, ValueError):  # the reader has gone
            self.is_closed = True
            self._waiting.clear()
            self._waiting_bytes = 0

    def _write(self, descriptor: int) -> None:
        data = self._waiting.popleft()
        if self._dropped:
            data = f"[{self._dropped} lines dropped: the output was not read]\n".encode() + data
            self._dropped = 0
        written = os.write(descriptor, data[:_WRITE_BYTES])
        self._waiting_bytes -= written
        if written < len(data):
            self._waiting.appendleft(data[written:])
