"""The plugin that lets tests which failed run once more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.processes

#: Tests that fail once, for ever, and with their process.
ONCE = """
import pathlib, pytest
def test_once(request):
    seen = pathlib.Path(__file__).with_suffix(".seen")
    is_first, _ = not seen.exists(), seen.touch()
    assert not is_first, "it was the first time"
"""
ALWAYS = "def test_always(): assert False\n"
SKIPPED = ONCE.replace(
    "assert not is_first", "is_first or pytest.skip('no')\n    assert not is_first"
)
CRASH = "import os, signal\ndef test_crash(): os.kill(os.getpid(), signal.SIGKILL)\n"
GOOD = "def test_good(): pass\n"


def run(folder: Path, most: int, *files: str) -> tuple[int, str]:
    """Run pytest on these files, with two processes, as the Makefile does."""
    for number, text in enumerate(files):
        (folder / f"test_{number}.py").write_text(text)
    options = ["-p", "tests.preloading", "-p", "tests.second_try", "--second-try", str(most)]
    options += ["-n", "2", "--dist", "loadfile", "--max-worker-restart", "0"]
    options += ["--import-mode=importlib", f"--rootdir={folder}", f"--basetemp={folder / '.temp'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def test_a_test_that_passes_alone_is_reported_and_lets_the_suite_pass(tmp_path: Path) -> None:
    """The first failure is shown whole, and only what failed runs again."""
    code, output = run(tmp_path, 2, ONCE, GOOD)

    assert 0 == code, output
    assert "AssertionError: it was the first time" in output
    assert "1 failed, 1 passed" in output
    _, _, again = output.partition("A second try, alone: test_0.py::test_once\n")
    assert "1 passed" in again


@pytest.mark.parametrize(
    ("most", "files"),
    [
        pytest.param(0, [ONCE], id="not asked for"),
        pytest.param(2, [ALWAYS], id="fails again"),
        pytest.param(2, [SKIPPED], id="is skipped then"),
        pytest.param(2, [ONCE, ONCE, ONCE], id="more than two"),
        pytest.param(2, [CRASH, ONCE], id="a crash: other tests have not run"),
        pytest.param(2, [ONCE, "import nothing_of_this_name\n"], id="a file that cannot be loaded"),
    ],
)
def test_the_suite_fails(tmp_path: Path, most: int, files: list[str]) -> None:
    code, output = run(tmp_path, most, *files)

    assert 0 != code, output
