"""The plugin that loads the tests once for all processes that run them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.preloading import ROOT
from tests.waiting import eventually, is_alive

pytestmark = pytest.mark.processes

#: Modules of tests that write down which process loads them, and which one runs them.
FILE = """
import os, signal, time

def note(what):
    with open({journal!r}, "a") as journal:
        journal.write(what + " " + str(os.getpid()) + "\\n")

note("loaded")

def test_of_this_file():
    note("run")
    {body}
"""


@contextmanager
def pytest_of(
    folder: Path, *bodies: str, stderr: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start pytest on one file for each body, with two processes, as the Makefile does; end it."""
    for number, body in enumerate(bodies):
        text = FILE.format(journal=str(folder / "journal"), body=body)
        (folder / f"test_{number}.py").write_text(text)
    options = ["-p", "tests.preloading", "-n", "2", "--import-mode=importlib"]
    options += ["--dist", "loadfile", "--max-worker-restart", "0"]
    # Where it has no folder of its own, pytest deletes at its end what earlier ones left behind.
    options += [f"--rootdir={folder}", f"--basetemp={folder / '.temporary'}"]
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, str(folder)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def noted(folder: Path, what: str) -> list[int]:
    """Return the ids of processes that loaded a file, or ran its test, in their order."""
    journal = folder / "journal"
    words = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
    return [int(pid) for noted, pid in words if noted == what]


def test_one_process_loads_the_files_and_others_run_the_tests(tmp_path: Path) -> None:
    """Each file is loaded once, by none of the two processes that run the tests."""
    with pytest_of(tmp_path, "time.sleep(1)", "time.sleep(1)") as process:
        output, _ = process.communicate(timeout=200)

    assert process.returncode == 0, output
    [first, second] = noted(tmp_path, "loaded")
    assert first == second
    assert 3 == len({*noted(tmp_path, "run"), first})


def test_a_process_that_crashes_ends_the_tests(tmp_path: Path) -> None:
    """The test that it ran fails, and no other process runs it again."""
    with pytest_of(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", "", "", "") as process:
        output, _ = process.communicate(timeout=200)

    assert process.returncode != 0
    assert re.search("crashed while running '.*test_0.py::test_of_this_file'", output)
    assert 1 == output.count("crashed while running")


def test_a_file_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    """The error of its import is shown, as without the plugin."""
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name\n")
    with pytest_of(tmp_path, "") as process:
        output, _ = process.communicate(timeout=200)

    assert "No module named 'nothing_of_this_name'" in output
    assert "1 error" in output


def test_a_file_that_skips_itself_is_skipped(tmp_path: Path) -> None:
    """The tests that stand before it does so do not run."""
    skip = "def test_before(): pass\nimport pytest\npytest.skip('no', allow_module_level=True)\n"
    (tmp_path / "test_skipped.py").write_text(skip)
    with pytest_of(tmp_path, "") as process:
        output, _ = process.communicate(timeout=200)

    assert "1 passed, 1 skipped" in output


def test_no_process_outlives_the_one_that_started_them(tmp_path: Path) -> None:
    """The end of all, also where it is killed while they run tests."""
    with pytest_of(tmp_path, "time.sleep(60)", "time.sleep(60)") as process:
        eventually(lambda: len(noted(tmp_path, "run")) == 2)
        others = psutil.Process(process.pid).children(recursive=True)
        process.kill()

    assert len(others) >= 5  # one that loads, and two with their interpreters
    eventually(lambda: not any(map(is_alive, others)))


def test_a_thread_that_an_import_starts_is_refused(tmp_path: Path) -> None:
    """A fork would not have it, and tests could wait for it for ever."""
    (tmp_path / "test_thread.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    with pytest_of(tmp_path, "", stderr=subprocess.STDOUT) as process:
        output, _ = process.communicate(timeout=200)

    assert process.returncode != 0
    assert "a fork would lack these threads" in output
