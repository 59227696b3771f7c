"""Counts of processes, each in a file of its own that all processes of a host can read.

A file is mapped into memory, so that counting is an addition there, what a killed process has
counted stays, and nothing is sent or flushed. Its owner holds a lock on it for as long as it lives.

    file   = chunk, chunk, …               each of CHUNK_BYTES
    chunk  = used, record, record, …       `used`: numbers of the chunk, this one included
    record = size of the key, key, number of cells, cell, …

All but the key, JSON padded with spaces, are doubles in the byte order of the machine.
"""

import errno
import fcntl
import json
import logging
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import unpack_from
from typing import Any

from arkloop.shared.metrics import Cells

log = logging.getLogger(__name__)

SUFFIX = ".counts"
CHUNK_BYTES = 1 << 16
_DOUBLE = 8


class CountFile:
    """The file of this process."""

    def __init__(self, folder: Path) -> None:
        """Continue the file of a process that is gone, else create one.

        Where the disk has no room for one, all is counted in memory alone.
        """
        self._chunks = 0
        self._chunk: memoryview[Any] = memoryview(b"")
        self._used = 0
        self._is_full = False
        self._inherited: dict[tuple[str, tuple[str, ...], int], Cells] = {}
        self._file: int | None = None
        try:
            self._file = _free(folder)
        except OSError as error:
            self._report(error)
            return
        for _ in range(os.fstat(self._file).st_size // CHUNK_BYTES):
            self._map_chunk()
            self._used = max(1, int(self._chunk[0]))
            for name, labels, at, cells in _records(self._chunk.cast("B")):
                self._inherited[name, labels, cells] = self._chunk, at // _DOUBLE

    def room(self, name: str, labels: tuple[str, ...], count: int) -> Cells:
        """Return as many cells for a series of this metric: zero, or as a process has left them.

        Where the disk has no room, they are in memory alone.
        """
        if (inherited := self._inherited.pop((name, labels, count), None)) is not None:
            return inherited
        key = json.dumps([name, labels]).encode()
        key += b" " * (-len(key) % _DOUBLE)
        size = 1 + len(key) // _DOUBLE + 1 + count
        try:
            if self._used + size > len(self._chunk):
                self._add_chunk()
        except OSError as error:
            self._report(error)
            return [0.0] * count, 0
        at = self._used
        self._chunk[at] = len(key)
        self._chunk.cast("B")[(at + 1) * _DOUBLE :][: len(key)] = key
        self._chunk[at + size - count - 1] = count
        self._used += size
        self._chunk[0] = self._used  # last: from now on it is read
        return self._chunk, at + size - count

    def _report(self, error: OSError) -> None:
        if not self._is_full:
            log.error("metrics: some are not counted: %s", error)
        self._is_full = True

    def _add_chunk(self) -> None:
        """Map more of the file; earlier chunks stay where they are."""
        if self._file is None:
            raise FileNotFoundError("this process has no file")
        begin = self._chunks * CHUNK_BYTES
        # Room on the disk is taken now: later a full disk would end the process by a signal.
        if os.pwrite(self._file, bytes(CHUNK_BYTES), begin) < CHUNK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._map_chunk()
        self._used = 1
        self._chunk[0] = self._used

    def _map_chunk(self) -> None:
        assert self._file is not None
        begin = self._chunks * CHUNK_BYTES
        self._chunk = memoryview(mmap.mmap(self._file, CHUNK_BYTES, offset=begin)).cast("d")
        self._chunks += 1


def _free(folder: Path) -> int:
    """Return a file, locked, that no process has: one that has ended left it, or it is new.

    There are never more files than processes at a time, however often one is replaced.

    Raises:
        OSError: the folder has room for no other file.
    """
    while True:
        for path in folder.glob(f"*{SUFFIX}"):
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
            else:
                return file
        # It is free until the next look, which another process that starts may have first.
        (folder / f"{os.getpid()}-{time.time_ns()}{SUFFIX}").touch(0o600)


@dataclass(frozen=True, slots=True)
class Series:
    """A series of one process, as its file has it."""

    name: str
    labels: tuple[str, ...]
    cells: Sequence[float]
    is_alive: bool


def read(folder: Path) -> Iterator[Series]:
    """Read what all processes have counted, those that are gone included."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with path.open("rb") as file:
                is_alive = _is_locked(file.fileno())
                content = file.read()
        except FileNotFoundError:  # a new first process empties the folder
            continue
        for begin in range(0, len(content) - CHUNK_BYTES + 1, CHUNK_BYTES):
            yield from _read_chunk(content[begin : begin + CHUNK_BYTES], is_alive)


def _is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _read_chunk(chunk: bytes, is_alive: bool) -> Iterator[Series]:
    for name, labels, at, count in _records(chunk):
        yield Series(name, labels, unpack_from(f"{count}d", chunk, at), is_alive)


def _records(chunk: bytes | memoryview) -> Iterator[tuple[str, tuple[str, ...], int, int]]:
    """Yield name and labels of each series, where its cells begin, in bytes, and their number."""
    end = int(unpack_from("d", chunk)[0]) * _DOUBLE
    at = _DOUBLE
    while at < end:
        size = int(unpack_from("d", chunk, at)[0])
        name, labels = json.loads(bytes(chunk[at + _DOUBLE : at + _DOUBLE + size]))
        at += _DOUBLE + size
        count = int(unpack_from("d", chunk, at)[0])
        yield name, tuple(labels), at + _DOUBLE, count
        at += _DOUBLE * (1 + count)
