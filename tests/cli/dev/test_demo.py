"""`arkloop demo`, from its first process to its last."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

#: It starts the local model, too.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

ARKLOOP = Path(sys.executable).with_name("arkloop")
BARE = {name: value for name, value in os.environ.items() if not name.startswith("ARKLOOP_")}
#: Servers of the folder in which the demo is tried; nothing listens there.
OF_THE_FOLDER = """\
ARKLOOP_DATABASE_URL=postgresql://arkloop@127.0.0.1:9/arkloop
ARKLOOP_REDIS_URL=redis://127.0.0.1:9
"""


def test_the_servers_of_the_folder_stay_untouched(tmp_path: Path) -> None:
    """It has databases of its own where a file .env names some, and leaves nothing behind."""
    (tmp_path / ".env").write_text(OF_THE_FOLDER)

    done = subprocess.run(
        [ARKLOOP, "demo"], cwd=tmp_path, env=BARE, capture_output=True, text=True, timeout=500
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert re.search(r"Replayed events \d+ to \d+: \d+ bytes, identical byte for byte", done.stdout)
    assert [".env"] == [file.name for file in tmp_path.iterdir()]
