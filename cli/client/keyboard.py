"""Answers from standard input: a person at a terminal, or lines in a pipe."""

import os
import select
import sys
import termios
import threading
from collections.abc import Callable
from enum import Enum

#: A pipe that has no line by then has nobody at its other end (that of a CI job stays open until
#: the job ends); at a terminal people think.
PIPE_SECONDS = 10.0
_CHUNK_BYTES = 65_536


class NoLine(Enum):
    """Reasons why there is no line to read, each as the end of a sentence."""

    ENDED = "standard input has ended"
    LATE = f"standard input had no complete line within {PIPE_SECONDS:.0f} seconds"


class Keyboard:
    """Reads a line when it is asked to, on a thread of its own: the run may go on meanwhile."""

    def __init__(self) -> None:
        #: Gets each line that was asked for, or the reason why there is none.
        self.give: Callable[[str | NoLine], None] = lambda line: None
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
        line = self._next_line()
        self._reading = False
        self.give(line)

    def _next_line(self) -> str | NoLine:
        # Not sys.stdin.readline(): a thread inside it would keep the process from ending.
        while b"\n" not in self._rest:
            chunk = self._read()
            if chunk is None:
                return NoLine.LATE  # part of a line is no answer: its writer may be at work on it
            if not chunk and not self._rest:
                return NoLine.ENDED
            self._rest += chunk or b"\n"
        first, _, self._rest = self._rest.partition(b"\n")
        return first.decode(errors="replace").rstrip("\r")

    def _read(self) -> bytes | None:
        """Return what has arrived, nothing at the end of the input, None if nothing arrives."""
        if self._descriptor is None:
            return b""
        try:
            seconds = None if self.is_terminal else PIPE_SECONDS
            readable, _, _ = select.select([self._descriptor], [], [], seconds)
            return os.read(self._descriptor, _CHUNK_BYTES) if readable else None
        except OSError:
            return b""
