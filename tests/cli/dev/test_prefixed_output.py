"""The output of many processes on one terminal."""

import os
from collections.abc import Iterator
from typing import TextIO

import pytest

from arkloop.cli.dev import prefixed_output
from arkloop.cli.dev.prefixed_output import PrefixedOutput


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A reader's descriptor and a writer's stream."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def test_names_stand_in_one_column(pipe: tuple[int, TextIO]) -> None:
    """Lines of processes with short and long names begin at the same place."""
    reader, stream = pipe
    output = PrefixedOutput(stream)
    output.name("worker.1")

    output.line("web.1", "hello")
    output.plain("Ready on http://127.0.0.1:8080")

    assert b"web.1    | hello\nReady on http://127.0.0.1:8080\n" == os.read(reader, 4096)


def test_what_a_process_prints_cannot_steer_the_terminal(pipe: tuple[int, TextIO]) -> None:
    """A line may quote what a user or a model wrote; the colours in front of it are our own."""
    reader, writer = pipe
    output = PrefixedOutput(writer, colour=True)

    output.line("web", "a\x1b]0;title\x07b\x9bc")

    assert "\x1b[36mweb |\x1b[0m a\ufffd]0;title\ufffdb\ufffdc\n" == os.read(reader, 4096).decode()


def test_a_reader_that_does_not_read_blocks_nobody(pipe: tuple[int, TextIO]) -> None:
    """Far more than a pipe holds is taken without a pause; the oldest lines are given up."""
    reader, stream = pipe
    output = PrefixedOutput(stream)

    for number in range(3_000):
        output.line("web.1", f"{number} " + "x" * 1_000)
    seen = b""
    for _turn in range(1_000):
        try:
            seen += os.read(reader, 65_536)
        except BlockingIOError:
            break
        output.flush()

    assert b"lines dropped" in seen
    assert seen.splitlines()[-1].startswith(b"web.1 | 2999 ")
    assert prefixed_output.MAX_WAITING_BYTES * 2 > len(seen)


def test_a_reader_that_has_gone_stops_nobody() -> None:
    """`arkloop dev | head` continues without an output."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        output = PrefixedOutput(stream)

        output.plain("one")
        output.plain("two")

        assert output.is_closed
