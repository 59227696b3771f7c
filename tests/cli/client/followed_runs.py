"""Runs that tests of `arkloop run` follow."""

import re
import subprocess

ASK = {"tool": "ask_user", "args": {"question": "Which one?", "options": ["red", "blue"]}}
HANG = {"hang": 60}


def run_of(text: str | bytes) -> str:
    """Return the run's id, as the command prints it."""
    text = text if isinstance(text, str) else text.decode()
    found = re.search("run ([0-9a-f-]{36}) in thread", text)
    assert found is not None, text
    return found[1]


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().decode()
