"""The priority of a worker beside other processes of its machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

AUTOGROUP = Path("/proc/self/autogroup")
#: Of this process, and of its session; the file is empty where that has no group.
LOWERED = """
import os, sys
from pathlib import Path
from arkloop.worker.process import priority

for niceness in sys.argv[1:]:
    priority.lower(int(niceness))
autogroup = Path("/proc/self/autogroup")
words = autogroup.read_text().split() if autogroup.exists() else []
print(os.nice(0), words[-1] if words else "none")
"""


def lowered(*levels: int, leads: bool = True, under: int = 0) -> tuple[int, str]:
    """Return the niceness of a process and its session after `lower` with each of these."""
    command = [sys.executable, "-c", LOWERED, *map(str, levels)]
    if under:
        command = ["nice", "-n", str(under), *command]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, start_new_session=leads
    )
    process, session = result.stdout.split()
    return int(process), session


def test_a_process_gives_way_as_far_as_it_is_to() -> None:
    """With 0 it does not."""
    now = os.nice(0)
    assert [now, now + 5] == [lowered(now)[0], lowered(now + 5)[0]]


def test_one_that_already_gives_way_further_is_left_as_it_is() -> None:
    """An operator starts it by `nice`, or it is lowered twice."""
    now = os.nice(0)
    assert now + 5 == lowered(now + 2, under=5)[0]
    assert now + 5 == lowered(now + 5, now + 2)[0]


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no groups of sessions")
def test_a_session_that_it_leads_gives_way_too() -> None:
    """Between sessions the niceness of a process counts for nothing."""
    assert "5" == lowered(5)[1]
    assert "10" == lowered(10, 5)[1]


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no groups of sessions")
def test_the_session_of_another_program_is_left_as_it_is() -> None:
    """It may be that of a shell, with web processes in it."""
    before = AUTOGROUP.read_text()
    lowered(5, leads=False)
    assert before == AUTOGROUP.read_text()


@pytest.mark.parametrize("file", ["missing", ".", "empty"])
def test_where_a_session_has_no_niceness_the_process_has_its_own(tmp_path: Path, file: str) -> None:
    """Other systems have no such file; a container may keep it from being read or written, and it
    is empty for a session without a group.
    """
    (tmp_path / "empty").touch()
    level = os.nice(0) + 5
    program = (
        "import os; from pathlib import Path; from arkloop.worker.process import priority;"
        f"priority.lower({level}, Path({str(tmp_path / file)!r})); print(os.nice(0))"
    )
    command = [sys.executable, "-c", program]
    assert (
        f"{level}\n".encode()
        == subprocess.run(
            command, stdout=subprocess.PIPE, check=True, start_new_session=True
        ).stdout
    )
