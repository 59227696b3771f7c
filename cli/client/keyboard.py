"""Answers from standard input: a person at a terminal, or lines in a pipe."""

import os
import select
import sys
import termios
import threading
from collections.abc import Callable

#: A pipe that has no line by then has nobody at its other end; at a terminal people think.
PIPE_SECONDS = 10.0
_CHUNK_BYTES = 65_536


class Keyboard:
    """Reads a line when it is asked to, on a thread of its own: the run may go on meanwhile."""

    def __init__(self, give: Callable[[str | None], None]) -> None:
        """`give` gets each line that was asked for, None if no more will come."""
        self._give = give
        self._rest = b""
        self._reading = False
        # Closed standard input: its number may be some other file's by now.
        self._descriptor = None if sys.stdin is None else sys.stdin.fileno()
        self.is_terminal = self._descriptor is not None and os.isatty(self._descriptor)

    def forget(self) -> None:
        """Drop what was typed so far: keys hit before a question is shown are no answer to it."""
        if self.is_terminal and self._descriptor is not None:
            termios.tcflush(self._descriptor, termios.TCIFLUSH)

    def ask(self) -> None:
        """Read a line; a second call before it arrives does not read another."""
        if self._reading:
            return
        self._reading = True
        threading.Thread(target=self._read_line, name="keyboard", daemon=True).start()

    def _read_line(self) -> None:
        # Not sys.stdin.readline(): a thread inside it would keep the process from ending.
        line: str | None = None
        while b"\n" not in self._rest:
            chunk = self._read()
            if not chunk and not self._rest:
                break
            self._rest += chunk or b"\n"
        else:
            first, _, self._rest = self._rest.partition(b"\n")
            line = first.decode(errors="replace").rstrip("\r")
        self._reading = False
        self._give(line)

    def _read(self) -> bytes:
        if self._descriptor is None:
            return b""
        try:
            seconds = None if self.is_terminal else PIPE_SECONDS
            readable, _, _ = select.select([self._descriptor], [], [], seconds)
            return os.read(self._descriptor, _CHUNK_BYTES) if readable else b""
        except OSError:
            return b""
