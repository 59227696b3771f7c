"""The check of the mark `processes`, on tests of a folder of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.own_processes import is_left_out
from tests.web_server import ROOT

pytestmark = pytest.mark.processes

CONFTEST = """
import subprocess, sys
import pytest
from tests.own_processes import OwnProcesses

def pytest_configure(config):
    for mark in ("processes", "tools"):
        config.addinivalue_line("markers", f"{mark}: may start some")
    config.pluginmanager.register(OwnProcesses())

def start():
    subprocess.run([sys.executable, "-c", ""], check=True)

@pytest.fixture(scope="session")
def of_all():
    start()

@pytest.fixture
def of_one():
    start()
"""
TESTS = """
import subprocess, sys
import pytest
from conftest import start

def test_of_all(of_all): ...

def test_none(of_all): ...

def test_of_one(of_one): ...

def test_itself(): start()

def test_forked(): sys.audit("arkloop.tests.fork", ["gunicorn"])

@pytest.mark.processes
def test_marked(of_one): start()

@pytest.mark.tools
def test_of_tools(of_one): start()
"""


FIRST, REST = dict.fromkeys(
    re.findall(r'-m "([^"]*processes[^"]*)"', (ROOT / "Makefile").read_text(encoding="utf-8"))
)


@pytest.mark.parametrize(
    ("text", "in_first", "in_rest"),
    [
        ("pytestmark = pytest.mark.processes\n", False, True),
        ("pytestmark = [pytest.mark.owner, pytest.mark.processes]\n", True, True),
        ("@pytest.mark.processes\ndef test_one(): ...\n", True, True),
        ("def test_one(): ...\n", True, False),
    ],
)
def test_files_without_a_test_for_a_command_are_not_loaded(
    tmp_path: Path, text: str, in_first: bool, in_rest: bool
) -> None:
    """`make test` and `make test-rest` load what may have one; without either, all are loaded."""
    file = tmp_path / "test_it.py"
    file.write_text(f"import pytest\n\n{text}")

    assert [in_first, in_rest] == [not is_left_out(file, each) for each in (FIRST, REST)]
    assert not is_left_out(file, "")


def test_tests_of_tools_belong_to_the_rest() -> None:
    """They are not loaded by `make test`."""
    file = ROOT / "tests" / "bench" / "test_agents.py"
    assert [True, False] == [is_left_out(file, each) for each in (FIRST, REST)]


def test_what_starts_a_process_without_the_mark_fails(tmp_path: Path) -> None:
    """The test itself, a fixture or a fork; what a fixture of the session starts is shared."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-rf", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    failed = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("FAILED")]

    assert ["of_one", "itself", "forked"] == [name.partition("::test_")[2] for name in failed]
    assert "test_it.py starts a process" in result.stdout
    assert "3 failed, 4 passed" in result.stdout
