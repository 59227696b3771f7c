"""The journal of what clients and injectors saw, one JSON object per line; the checker reads
nothing else.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Self

Entry = dict[str, Any]


class Journal:
    """Entries in the order of their writing, from any number of threads.

    With a path they are appended to that file, so that they outlive a killed process; without,
    they stay in `entries`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._entries: list[Entry] = []
        self._lock = Lock()
        # Unbuffered, and one write a line: what is written is in the file, whole.
        self._file = path.open("ab", buffering=0) if path else None

    def write(self, kind: str, **fields: Any) -> None:
        """Append `{"at": now, "kind": kind, …}`."""
        with self._lock:
            entry = {"at": time.time(), "kind": kind, **fields}
            line = json.dumps(entry, ensure_ascii=False, default=str)
            if self._file is None:
                # What a reader of a file would get: ids are text, tuples are lists.
                self._entries.append(json.loads(line))
                return
            # Lone surrogates can come in bytes that a client could not decode.
            data = memoryview(f"{line}\n".encode(errors="backslashreplace"))
            while data:
                data = data[os.write(self._file.fileno(), data) :]

    @contextmanager
    def fault(self, name: str, **details: Any) -> Iterator[None]:
        """Record a fault that lasts as long as the block: its begin and its end, also after an
        error.
        """
        self.write("fault", name=name, phase="begin", **details)
        try:
            yield
        finally:
            self.write("fault", name=name, phase="end", **details)

    @property
    def entries(self) -> list[Entry]:
        """Everything written so far; from the file, if there is one."""
        if self.path is not None:
            return read(self.path)
        with self._lock:
            return list(self._entries)

    def close(self) -> None:
        """Close the file; nothing can be written any more."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> list[Entry]:
    """Read all whole entries of a journal, oldest first; an incomplete last line is omitted."""
    with path.open("rb") as file:
        return [json.loads(line) for line in file if line.endswith(b"\n")]
