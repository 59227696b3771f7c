"""Processes that the fork server starts are as those that `python -m` starts."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from tests.cpu_of_files import seconds_of
from tests.fork_server import READ_SETTINGS
from tests.forked import ROOT, SERVER, Forked, ForkServer, has_ended
from tests.waiting import eventually
from tests.web_server import INHERITED, starts_otherwise

pytestmark = pytest.mark.processes

PROGRAM = """
import json, os, sys, time
json.dump({"argv": sys.argv, "environ": dict(os.environ), "cwd": os.getcwd(), "name": __name__,
    "modules": list(sys.modules)}, sys.stderr)
print(flush=True)
while time.process_time() < 0.3: pass
time.sleep(float(sys.argv[1]))
"""


class Start(Protocol):
    """The type of the fixture below."""

    def __call__(self, seconds: str, server: ForkServer = SERVER) -> tuple[Forked, Path]: ...


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Call it for a process that says how it was started, and sleeps for these seconds."""
    (tmp_path / "says_how_it_was_started.py").write_text(PROGRAM)

    def started(seconds: str, server: ForkServer = SERVER) -> tuple[Forked, Path]:
        argv = ("says_how_it_was_started", seconds)
        log = tmp_path / "log"
        return server.start(argv, {"PYTHONPATH": str(tmp_path), "A": "b"}, log), log

    return started


def test_a_process_has_what_was_ordered_alone(start: Start, tmp_path: Path) -> None:
    """No variable of the tests, and no module that has read settings."""
    process, log = start("0")
    process.wait(60)

    found: dict[str, Any] = json.loads(log.read_text())
    assert {"PYTHONPATH": str(tmp_path), "A": "b"} == found["environ"]
    assert [str(tmp_path / "says_how_it_was_started.py"), "0"] == found["argv"]
    assert ("__main__", os.getcwd()) == (found["name"], found["cwd"])
    assert set() == {*READ_SETTINGS} & {*found["modules"]}


def test_settings_are_read_by_the_modules_that_each_process_imports() -> None:
    """Another one that read them at its import would give every process those of the first."""
    at_import = re.compile(r"^(?: {4})?\w+ = Settings\.from_env\(", re.MULTILINE)
    files = [file for room in ("api", "shared", "worker") for file in (ROOT / room).rglob("*.py")]
    found = {
        ".".join(("arkloop", *file.relative_to(ROOT).with_suffix("").parts))
        for file in files
        if at_import.search(file.read_text())
    }
    assert {*READ_SETTINGS} == found


def test_the_cpu_time_of_a_process_counts_for_the_file_that_started_it(start: Start) -> None:
    """The process that forks has it among its children's once it has taken note of the end."""
    first, _ = start("0")
    assert SERVER.pid is not None
    server = psutil.Process(SERVER.pid)

    def of_children() -> float:
        times = server.cpu_times()
        return times.children_user + times.children_system

    first.wait(60)
    eventually(lambda: not psutil.pid_exists(first.pid))
    before, all_before = of_children(), seconds_of(psutil.Process())

    second, _ = start("0")
    second.wait(60)

    eventually(lambda: of_children() - before >= 0.25)
    assert seconds_of(psutil.Process()) - all_before >= 0.25


def test_a_process_can_be_awaited_and_ended(start: Start) -> None:
    """As a child can; a signal to one that has ended goes nowhere."""
    process, _ = start("100")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    assert not has_ended(process)

    process.terminate()

    process.wait(60)
    assert has_ended(process)
    process.send_signal(signal.SIGKILL)


def test_processes_end_with_the_one_that_forks(start: Start) -> None:
    """That one reads orders until the tests end, however they do; no other one is started then."""
    own = ForkServer()
    process, _ = start("100", own)
    assert not has_ended(process)
    assert own.pid is not None

    psutil.Process(own.pid).kill()

    process.wait(60)
    with pytest.raises(RuntimeError, match="the fork server has ended"):
        start("0", own)
    own.stop()


def test_a_process_that_python_customizes_at_its_start_is_not_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose path has other modules is."""
    monkeypatch.delitem(INHERITED, "COVERAGE_PROCESS_CONFIG", raising=False)
    environ = {"PYTHONPATH": os.pathsep.join((str(tmp_path / "none"), str(tmp_path)))}
    assert not starts_otherwise(environ)

    (tmp_path / "sitecustomize.py").touch()

    assert starts_otherwise(environ)
