"""Folders on a file system that hangs."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

#: Prints what becomes of both questions about a folder whose file system never responds.
_HANGING = """
import os, sys
if sys.argv[1] == "greenlets":
    from gevent import monkey
    monkey.patch_all()
from pathlib import Path
from arkloop.shared import folders
from arkloop.shared.native_threads import new_lock

never = new_lock()
never.acquire()
exists = os.path.exists
os.path.exists = lambda path: never.acquire() if str(path) == sys.argv[2] else exists(path)
folders.RESPONSE_SECONDS = 0.5
for ask in (folders.unwritable, lambda folder: folders.without_room(folder, 1)):
    try:
        print(ask(Path(sys.argv[2])))
    except TimeoutError as error:
        print(error)
    print(ask(Path(sys.argv[3])))
"""


@pytest.mark.parametrize("threads", ["greenlets", "native"])
def test_a_folder_that_hangs_is_given_up(tmp_path: Path, threads: str) -> None:
    """Others are looked at, and the process ends, with its threads that still hang."""
    command = [sys.executable, "-c", _HANGING, threads, str(tmp_path / "hangs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    silent = "it does not respond within 0.5 s"
    assert ([silent, "None"] * 2, "") == (done.stdout.splitlines(), done.stderr)
    assert 0 == done.returncode
