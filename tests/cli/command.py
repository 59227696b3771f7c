"""The real `arkloop` in a process of its own, with pipes or with a terminal."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tests.waiting import eventually
from tests.web_server import INHERITED

ARKLOOP = Path(sys.executable).with_name("arkloop")
#: The time for a command, or for what it waits for: it bounds a hang.
SECONDS = 100


@dataclass(frozen=True)
class Arkloop:
    """Called in `folder`, with `environ` and no other setting in its environment."""

    folder: Path
    environ: Mapping[str, str]

    def with_(self, **variables: str) -> "Arkloop":
        """Return the same with other variables; an empty one is omitted."""
        merged = {**self.environ, **variables}
        return replace(self, environ={name: value for name, value in merged.items() if value})

    def __call__(self, *args: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run it to its end; standard input has `input` and ends."""
        return subprocess.run(
            [ARKLOOP, *args],
            input=input,
            capture_output=True,
            cwd=self.folder,
            env=self._environment(),
            timeout=SECONDS,
        )

    def stdout(self, *args: str) -> str:
        """Return what it prints; it must succeed."""
        done = self(*args)
        assert 0 == done.returncode, done.stderr.decode()
        return done.stdout.decode()

    @contextmanager
    def started(self, *args: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start it with pipes, for the length of the block."""
        with subprocess.Popen(
            [ARKLOOP, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env=self._environment(),
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def at_terminal(self, *args: str) -> Iterator["Terminal"]:
        """Start it with a terminal for all three of its streams, for the length of the block."""
        ours, theirs = os.openpty()
        with subprocess.Popen(
            [ARKLOOP, *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=self.folder,
            env={**self._environment(), "TERM": "xterm-256color"},
        ) as process:
            os.close(theirs)
            terminal = Terminal(process, ours)
            try:
                yield terminal
            finally:
                process.kill()
                process.wait()
                terminal.close()

    def _environment(self) -> dict[str, str]:
        return {**INHERITED, **self.environ}


class Terminal:
    """A terminal: the text on the screen, and the keys that are pressed."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._output = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def screen(self) -> str:
        """All that was printed, without colours."""
        text = self._output.decode(errors="replace").replace("\r\n", "\n")
        return re.sub("\x1b\\[[0-9;]*m", "", text)

    def until(self, text: str) -> None:
        """Wait until the text stands on the screen."""
        with suppress(AssertionError):
            eventually(lambda: text in self.screen, seconds=SECONDS)
        assert text in self.screen

    def type(self, line: str) -> None:
        os.write(self._descriptor, f"{line}\n".encode())

    def ended(self) -> int:
        """Return the exit status, once all output is on the screen."""
        status = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return status

    def close(self) -> None:
        self._reader.join(SECONDS)
        os.close(self._descriptor)

    def _read(self) -> None:
        # EIO: the last process with this terminal has ended.
        with suppress(OSError):
            while chunk := os.read(self._descriptor, 65_536):
                self._output += chunk
