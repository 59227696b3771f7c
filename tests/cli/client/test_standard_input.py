"""Commands that read standard input where `-` is given."""

import subprocess
from pathlib import Path

import pytest

from tests.cli.command import ARKLOOP, SECONDS, Arkloop
from tests.web_server import INHERITED

pytestmark = pytest.mark.processes

RUN = "01a20e69-febb-7726-9958-e5d91f244720"
READING = [
    ("run", "-"),
    ("runs", "result", RUN, "call_1", "-"),
    ("personas", "publish", "-"),
]


CLOSED = "<&-"
#: As `nohup` opens it in the place of a terminal.
WRITE_ONLY = "0>/dev/null"


def _called(
    words: tuple[str, ...], standard_input: str, folder: Path
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {standard_input}', ARKLOOP, *words],
        capture_output=True,
        cwd=folder,
        env=INHERITED,
        timeout=SECONDS,
    )


@pytest.mark.parametrize("words", READING)
def test_a_closed_standard_input_is_wrong_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A daemon may have none: nothing is sent, and there is no traceback."""
    done = _called(words, CLOSED, tmp_path)

    assert (2, b"") == (done.returncode, done.stdout)
    assert done.stderr.endswith(b"\nError: Standard input is closed.\n")


@pytest.mark.parametrize("words", READING)
def test_a_standard_input_that_cannot_be_read_is_wrong_usage(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """The message has the reason of the system."""
    done = _called(words, WRITE_ONLY, tmp_path)

    assert (2, b"") == (done.returncode, done.stdout)
    assert done.stderr.endswith(b"\nError: Standard input cannot be read: Bad file descriptor.\n")


def test_a_question_without_a_standard_input_is_wrong_usage(tmp_path: Path) -> None:
    """Only `--yes` can answer it then."""
    done = _called(("tools", "delete", RUN), CLOSED, tmp_path)

    assert (2, b"") == (done.returncode, done.stdout)
    assert done.stderr.endswith(
        b"\nError: Standard input is closed: only --yes can confirm this.\n"
    )


@pytest.mark.parametrize("words", READING)
def test_a_standard_input_that_is_not_utf_8_is_wrong_usage(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """In a locale of UTF-8, with which Python refuses other bytes."""
    done = Arkloop(tmp_path, {"PYTHONIOENCODING": "utf-8:strict"})(*words, input=b"caf\xe9")

    assert (2, b"") == (done.returncode, done.stdout)
    assert done.stderr.endswith(b"\nError: Standard input is not valid UTF-8.\n")
