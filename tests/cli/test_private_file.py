"""Files with secrets."""

import stat
from pathlib import Path

from arkloop.cli.private_file import write_private


def test_a_private_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """An old file with wide permissions does not pass them on."""
    path = tmp_path / "api-key"
    path.write_text("old")
    path.chmod(0o644)

    write_private(path, "new")

    assert "new" == path.read_text()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
