"""Log lines of a process, written to standard error by a native thread of their own.

Standard error is often a pipe, whose reader may stand still: a log driver that blocks, or a
collector behind a full disk. A process that waited for it would execute, answer and stream nothing.

A forked process writes its lines by itself, unless it is one that lives on: children of
`multiprocessing`, such as those of a tool, exit without flushing.
"""

import _queue
import _thread
import atexit
import logging
import os
import select
import sys
import time
from typing import Any

#: Lines that wait; beyond them the newest are dropped.
MAX_LINES = 4_096
#: How long a process that ends waits for its last lines to be written, and one without a thread for
#: room for a line.
FINISH_SECONDS = 1.0
#: How often, and how long each time, a thread that has filled the queue lets lines be written: one
#: that computes without a pause is faster than any reader.
PAUSES, PAUSE_SECONDS = 20, 0.0001
#: How often the rest of a line is tried again: until it is written, those of other processes that
#: share the file are appended to its beginning.
RETRY_SECONDS = 0.1

_STDERR = 2
#: Lines up to this size together are written at once, and not between those of other processes.
_WHOLE_BYTES = select.PIPE_BUF


class LogWriter(logging.Handler):
    """A handler that formats a line and leaves it to the thread; one for each process."""

    def __init__(self) -> None:
        super().__init__()
        # Without standard error its number is that of a socket or file that was opened since.
        self._has_output = sys.stderr is not None
        #: Whether lines are written by the thread that logs them. Set it to False in a forked
        #: process that lives on, and to True in one that must not have another thread, or that code
        #: of others may crash.
        self.writes_directly = False
        self._begin()
        os.register_at_fork(after_in_child=self._begin_in_child)
        atexit.register(self._finish)

    def _begin_in_child(self) -> None:
        self._begin()
        self.writes_directly = True

    def _begin(self) -> None:
        """Begin without lines or a thread: those of the process that has forked are its own."""
        self._lines: _queue.SimpleQueue[Any] = _queue.SimpleQueue()  # never gevent's
        self._has_thread = self._has_ended = False
        self._is_stuck = False  # whether nothing was written since a wait was in vain
        self._dropped = 0  # changed under the handler's lock alone
        # These are changed by the thread, or by direct writes.
        self._lost = 0  # lines that came while the rest of others could not be written
        self._reported = 0  # of those dropped or lost
        self._rest: bytes | memoryview = b""  # of lines for which there was no room, or a full disk

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record, and leave its line to the thread, or drop it."""
        if not self._has_output:
            return
        try:
            self._put(_encoded(self.format(record)))
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def _put(self, line: bytes) -> None:
        if self._has_ended or self.writes_directly or not self._started():
            self._write_directly(line)
            return
        if self._is_full() and not self._is_stuck:
            self._let_write()
        if self._is_full():
            self._dropped += 1
        else:
            self._lines.put(line)

    def _write_directly(self, line: bytes) -> None:
        """Write the line, or drop it if there is no room; only the first one waits for some.

        A pipe that has room may have it for one piece alone. The rest of a line is written before
        the next one.
        """
        while self._rest or line:
            if not _has_room(0 if self._is_stuck else FINISH_SECONDS):
                self._is_stuck = True
                break
            self._is_stuck = False
            if not self._rest:
                self._rest = memoryview(self._notice_of_dropped() + line)
                line = b""
            piece = self._rest[:_WHOLE_BYTES]
            unwritten = _write(piece)
            self._rest = self._rest[len(piece) - len(unwritten) :]
            if unwritten:
                break
        self._dropped += bool(line)

    def _started(self) -> bool:
        """Start the thread if there is none, and return whether there is one."""
        if not self._has_thread:
            self._has_thread = True
            try:
                _native(_thread, "start_new_thread")(self._run, ())
            except (RuntimeError, MemoryError):  # no thread is left, or Python ends
                self._has_thread = False  # the next line tries again
        return self._has_thread

    def _is_full(self) -> bool:
        return self._lines.qsize() >= MAX_LINES

    def _let_write(self) -> None:
        sleep = _native(time, "sleep")
        for _ in range(PAUSES):
            sleep(PAUSE_SECONDS)
            if not self._is_full():
                return
        self._is_stuck = True

    def flush(self) -> None:
        """Wait until all lines so far are written, but not longer than `FINISH_SECONDS`."""
        if self._has_thread and not self._has_ended:
            written: _queue.SimpleQueue[None] = _queue.SimpleQueue()
            self._lines.put(written)
            try:
                written.get(timeout=FINISH_SECONDS)
            except _queue.Empty:
                self._is_stuck = True

    def _finish(self) -> None:
        """Wait until all lines are written; later ones are written at once.

        If that takes too long they are lost: the process ends.
        """
        self.flush()
        self._has_ended = True

    # ---- in the thread, which takes no lock that a greenlet may have ----

    def _run(self) -> None:
        try:
            self._write_lines()
        finally:  # no memory, for example: Python prints why, and the next line starts another
            self._has_thread = False

    def _write_lines(self) -> None:
        lines = self._lines
        batch = b""
        while True:
            try:
                item = lines.get(not batch, RETRY_SECONDS if self._rest else None)
            except _queue.Empty:
                item = None
            if isinstance(item, bytes) and len(batch) + len(item) <= _WHOLE_BYTES:
                batch += item
                continue
            if batch:
                self._send(batch)
                self._is_stuck = self._has_ended and self._is_stuck
            batch = item if isinstance(item, bytes) else b""
            if not batch:
                self._send(b"")
                if not self._rest:
                    self._send(self._notice_of_dropped())
            if isinstance(item, _queue.SimpleQueue):
                item.put(None)

    def _send(self, lines: bytes) -> None:
        """Write the lines, after the rest of earlier ones; they are lost if that cannot be written.

        The rest of a partly written line is written before any other line of this process.
        """
        self._rest = _write(self._rest)
        if self._rest:
            self._lost += lines.count(b"\n")
        else:
            self._rest = _write(lines)

    def _notice_of_dropped(self) -> bytes:
        """Return a line about the lines that were dropped or lost since the last one; empty if none
        was.
        """
        dropped = self._dropped + self._lost - self._reported
        if not dropped:
            return b""
        line = _encoded(self.format(_notice(dropped)))
        self._reported += dropped
        return line


def _native(module: Any, name: str) -> Any:
    """Return a function of the standard library, also where gevent has replaced it."""
    if monkey := sys.modules.get("gevent.monkey"):
        return monkey.get_original(module.__name__, name)
    return getattr(module, name)


def _notice(dropped: int) -> logging.LogRecord:
    line = "%d lines of the log were dropped: standard error was not read, or could not be written"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, line, (dropped,), None)


def _encoded(line: str) -> bytes:
    return f"{line}\n".encode(errors="backslashreplace")


def _has_room(seconds: float) -> bool:
    """Return whether standard error takes `_WHOLE_BYTES` within this time; True if it is closed."""
    try:
        return bool(_native(select, "select")([], [_STDERR], [], seconds)[1])
    except OSError:
        return True


def _write(data: bytes | memoryview) -> bytes | memoryview:
    """Write the data; returns what cannot be written, as to a full disk."""
    while data:
        try:
            data = data[os.write(_STDERR, data) :]
        except BlockingIOError:  # another process that has the pipe made it so
            _native(time, "sleep")(0.01)
        except OSError:
            break
    return data
