"""Rows on a terminal and in a pipe."""

import os
import sys

import pytest

from arkloop.cli.listing import print_fields, print_rows

ROW = {"login": "Ann of the desk", "org": None}


def test_in_a_pipe_a_tab_is_between_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """No field has a tab or a line break, and each line has all fields."""
    print_rows(("login", "org"), [ROW])
    print_fields("a\tb\nc", None, 3)

    assert "Ann of the desk\t-\na b c\t-\t3\n" == capsys.readouterr().out


def test_on_a_terminal_fields_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list has a header there, and a row that is printed by itself has none."""
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        print_rows(("login", "org"), [ROW])
        print_fields("one", None, 3)
        terminal.flush()
        output = b""
        while output.count(b"\n") < 3:
            output += os.read(ours, 4096)
    os.close(ours)
    screen = output.decode().splitlines()

    assert ["Ann of the desk  -", "one  -  3"] == [line.rstrip() for line in screen[1:]]
    assert "login" in screen[0]
