"""Dumps and readers of a process's memory, before and after it is closed to them."""

import os
import pwd
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arkloop.shared.security import process_memory

pytestmark = pytest.mark.processes

#: The module alone, so that any interpreter can run it: FILE CLOSES REST.
START = """
import ctypes, importlib.util, os, resource, sys
spec = importlib.util.spec_from_file_location("process_memory", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""
ABORT = """
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if sys.argv[3] == "unlimited":
    resource.setrlimit = lambda *_: None
module.close() if sys.argv[2] == "closes" else None
os.abort()
"""
WAIT = """
os.setresuid(int(sys.argv[3]), int(sys.argv[3]), int(sys.argv[3]))
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as after a start as this user
module.close() if sys.argv[2] == "closes" else None
print("ready", flush=True)
sys.stdin.read()
"""


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-c", START + script, process_memory.__file__, *arguments]


def leaves_a_dump(folder: Path, *arguments: str) -> bool:
    process = subprocess.Popen(command(ABORT, *arguments), cwd=folder, stderr=subprocess.DEVNULL)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = 0
    return os.WCOREDUMP(status) or any(folder.iterdir())


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    """A folder where a process that does not refuse dumps leaves one."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("this machine limits core dumps")
    (probe := tmp_path / "probe").mkdir()
    if not leaves_a_dump(probe, "keeps", "-"):
        pytest.skip("this machine writes no core dumps")
    (folder := tmp_path / "dumps").mkdir()
    return folder


def test_a_process_that_aborts_leaves_no_dump(dumps: Path) -> None:
    """The kernel would have written one."""
    assert not leaves_a_dump(dumps, "closes", "-")


def test_no_limit_is_needed(dumps: Path) -> None:
    """A kernel that hands dumps to a program does not look at it."""
    assert not leaves_a_dump(dumps, "closes", "unlimited")


@pytest.mark.parametrize("mode", ["keeps", "closes"])
def test_others_of_the_same_user_read_no_environment(mode: str) -> None:
    """A program that runs as the same user finds no secret of this process."""
    user = os.geteuid() or pwd.getpwnam("nobody").pw_uid
    process = subprocess.Popen(
        command(WAIT, mode, str(user)),
        env={"SECRET": "canary"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        as_user: dict[str, Any] = {"user": user} if os.geteuid() == 0 else {}
        reader = ["/bin/cat", f"/proc/{process.pid}/environ"]
        read = subprocess.run(reader, capture_output=True, text=True, cwd="/", **as_user)
        assert process.stdin is not None
        process.stdin.close()

    assert ("canary" in read.stdout) == (mode == "keeps"), read.stderr
