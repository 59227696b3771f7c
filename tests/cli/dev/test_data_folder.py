"""The files that `arkloop dev` keeps between two starts."""

import os
import stat
from pathlib import Path

import pytest

from arkloop.cli.dev.data_folder import DataFolder, DataFolderInUse


def test_secrets_are_made_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    """Tokens stay valid over a restart, and nobody else can forge them."""
    first = DataFolder(tmp_path).secrets({})
    again = DataFolder(tmp_path).secrets({})

    assert first == again
    assert 32 <= len(bytes.fromhex(first["ARKLOOP_JWT_SECRET"]))
    assert 0o600 == stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode)


def test_secrets_of_the_environment_go_first(tmp_path: Path) -> None:
    """An operator's own secret is used, and the folder's is kept for the day it is gone."""
    made = DataFolder(tmp_path).secrets({})
    given = DataFolder(tmp_path).secrets({"ARKLOOP_JWT_SECRET": "x" * 32})

    assert "x" * 32 == given["ARKLOOP_JWT_SECRET"]
    assert made == DataFolder(tmp_path).secrets({})


def test_a_folder_in_use_is_refused_at_once(tmp_path: Path) -> None:
    """Two supervisors on one folder would fight over its databases."""
    with DataFolder(tmp_path).locked(os.getpid()):
        with pytest.raises(DataFolderInUse, match=f"process {os.getpid()}"):
            with DataFolder(tmp_path).locked(1):
                pass


def test_a_folder_is_free_again_after_its_owner(tmp_path: Path) -> None:
    """The lock belongs to a living process, not to a file that stays behind."""
    for _start in range(2):
        with DataFolder(tmp_path).locked(os.getpid()):
            owner = (tmp_path / "lock").read_text()

    assert f"{os.getpid()}\n" == owner
