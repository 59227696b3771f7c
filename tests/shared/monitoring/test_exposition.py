"""The folder that processes share, and who empties it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arkloop.shared.monitoring import exposition

_ENTER = """
import sys
from pathlib import Path
from arkloop.shared.monitoring import exposition
exposition._enter(Path(sys.argv[1]))
print("in", flush=True)
sys.stdin.read()
"""


def test_the_first_process_empties_the_folder_and_others_do_not(tmp_path: Path) -> None:
    """What processes of an earlier start have counted would be counted again; what lives stays."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "counter_1.db").touch()
    first = _started(folder)
    assert [] == [*folder.glob("*.db")]
    (folder / "counter_2.db").touch()
    second = _started(folder)
    assert ["counter_2.db"] == [file.name for file in folder.glob("*.db")]
    for process in (first, second):
        process.kill()
        process.communicate()


def _started(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", _ENTER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and "in\n" == process.stdout.readline()
    return process


def test_gauges_of_dead_processes_are_forgotten(tmp_path: Path) -> None:
    """Open streams of a process that was killed are open no more; its counters stay."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getpid()):
        (tmp_path / f"gauge_livesum_{pid}.db").touch()
        (tmp_path / f"counter_{pid}.db").touch()

    exposition._forget_dead_gauges(tmp_path)

    left = {f"counter_{pid}.db" for pid in (gone.pid, os.getpid())}
    assert left | {f"gauge_livesum_{os.getpid()}.db"} == {file.name for file in tmp_path.iterdir()}


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name can be guessed: somebody could have made it to write counts of their own."""
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError):
        exposition._enter(tmp_path / "metrics")
