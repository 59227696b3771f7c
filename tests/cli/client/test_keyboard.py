"""Lines of standard input, read from a real pipe."""

import os
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from arkloop.cli.client import keyboard
from arkloop.cli.client.keyboard import Keyboard, NoLine

SECONDS = 60


class Pipe:
    """A pipe that is standard input, and what a keyboard has read from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lines: SimpleQueue[str | NoLine] = SimpleQueue()
        reading, self._writing = os.pipe()
        self._reading = os.fdopen(reading)
        monkeypatch.setattr("sys.stdin", self._reading)
        self._keyboard = Keyboard()
        self._keyboard.give = self._lines.put

    def write(self, data: bytes) -> None:
        os.write(self._writing, data)

    def next_line(self) -> str | NoLine:
        self._keyboard.ask()
        return self._lines.get(timeout=SECONDS)

    def end(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def close(self) -> None:
        self.end()
        self._reading.close()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    opened = Pipe(monkeypatch)
    yield opened
    opened.close()


def test_a_silent_pipe_is_not_taken_for_one_that_has_ended(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open pipe without a line is late; only a closed one has ended."""
    monkeypatch.setattr(keyboard, "PIPE_SECONDS", 0.1)

    assert NoLine.LATE is pipe.next_line()
    pipe.end()
    assert NoLine.ENDED is pipe.next_line()


def test_part_of_a_line_is_no_answer(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line whose end has not arrived is late, and is read as a whole when it has."""
    monkeypatch.setattr(keyboard, "PIPE_SECONDS", 0.1)
    pipe.write(b"no, del")

    assert NoLine.LATE is pipe.next_line()
    pipe.write(b"ete nothing\n")
    assert "no, delete nothing" == pipe.next_line()


def test_the_end_of_the_input_ends_a_line(pipe: Pipe) -> None:
    """`printf yes` answers without a newline."""
    pipe.write(b"first\r\nyes")
    pipe.end()

    assert ["first", "yes", NoLine.ENDED] == [pipe.next_line() for _ in range(3)]
