"""The lines after `Ready on …`."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from arkloop.cli.dev import welcome
from arkloop.cli.dev.data_folder import DataFolder
from arkloop.cli.dev.prefixed_output import PrefixedOutput

KEY = "al_" + "k" * 36


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [".venv/bin/arkloop", "dev"])
    made = DataFolder(Path(".arkloop"))
    made.path.mkdir()
    made.api_key.write_text(f"{KEY}\n")
    return made


def lines(folder: DataFolder, output: PrefixedOutput, *, has_model: bool = False) -> list[str]:
    return list(welcome.lines("http://127.0.0.1:8080", folder, output, has_model=has_model))


def test_a_person_gets_the_key_and_three_commands(folder: DataFolder) -> None:
    """The console's address, the key, and what to try next, as it can be pasted."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        printed = lines(folder, PrefixedOutput(terminal), has_model=True)
    os.close(ours)

    assert ["The console is at http://127.0.0.1:8080/console#/sign-in?with=key", KEY] == [
        printed[0],
        printed[1].rpartition(" ")[2],
    ]
    commands = [shlex.split(line) for line in printed if line.startswith("  ")]
    assert [[".venv/bin/arkloop", "run"], [".venv/bin/arkloop", "runs"], ["curl", "-H"]] == [
        command[:2] for command in commands
    ]
    assert "$(cat .arkloop/api-key)" in printed[-1]


def test_a_log_gets_no_key(folder: DataFolder) -> None:
    """An output that is no terminal gets the name of the file with the key."""
    with open(os.devnull, "w") as log:
        printed = "\n".join(lines(folder, PrefixedOutput(log)))

    assert KEY not in printed
    assert "Sign in with the API key in .arkloop/api-key" in printed


def test_another_folder_is_named_to_the_commands(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands find the key by ARKLOOP_DATA where the folder is not the default one."""
    (folder.path / "sub").mkdir()
    monkeypatch.chdir(folder.path / "sub")
    with open(os.devnull, "w") as log:
        printed = lines(folder, PrefixedOutput(log))

    assert f"  export ARKLOOP_DATA={folder.path}" in printed
    assert f"$(cat {folder.api_key})" in printed[-1]


@pytest.mark.parametrize(
    ("has_model", "key", "expected"),
    [
        (True, "", ["Answers are from a small model on this machine, which is often wrong."]),
        (False, "", ["Answers repeat the message: there is no model."]),
        (True, "sk-1", []),
    ],
)
def test_a_poor_answer_is_no_surprise(
    folder: DataFolder,
    monkeypatch: pytest.MonkeyPatch,
    has_model: bool,
    key: str,
    expected: list[str],
) -> None:
    """Without a vendor's key the answers are poor, and the output says what brings others."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with open(os.devnull, "w") as log:
        printed = lines(folder, PrefixedOutput(log), has_model=has_model)

    advice = " For others put OPENAI_API_KEY or ANTHROPIC_API_KEY into .env."
    assert [f"{one}{advice}" for one in expected] == [x for x in printed if "Answers" in x]
