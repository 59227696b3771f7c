"""The rooms: tests mirror them, and rules about them that import-linter cannot express."""

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Table

from arkloop.shared.storage.tables import metadata

ROOT = Path(__file__).parents[1]
PACKAGES = ("shared", "api", "worker", "cli")
ROOMS = sorted(
    str(folder.relative_to(ROOT))
    for package in PACKAGES
    for folder in {file.parent for file in (ROOT / package).rglob("*.py")}
)
#: It copies and erases whole orgs, table by table.
OF_ALL_TABLES = {"cli/operator"}
#: Tests of what several modules of a room do together, by the room.
WHOLE_ROOM = {
    "shared/billing": {"query_plans"},
    "shared/runs": {"life_cycle"},
    "shared/storage": {"query_plans"},
    "worker/agent": {"approvals", "broken_call_usage", "tool_ledger"},
    "worker/providers": {
        "provider_cancel",
        "provider_example",
        "provider_failures",
        "provider_state",
        "provider_timeouts",
        "provider_tool_output",
        "model_settings",
    },
}


@pytest.mark.parametrize("room", ROOMS)
def test_tests_mirror_the_rooms(room: str) -> None:
    """A test file is named for a module of its room, or for one and an aspect of it."""
    modules = {file.stem for file in (ROOT / room).glob("*.py")} - {"__init__"}
    subjects = modules | {Path(room).name} | WHOLE_ROOM.get(room, set())
    tests = {file.stem.removeprefix("test_") for file in (ROOT / "tests" / room).glob("test_*.py")}

    assert tests or not modules, f"tests/{room} has no tests"
    assert set() == {name for name in tests if not _is_named_for(name, subjects)}
    assert WHOLE_ROOM.get(room, set()) <= tests


def _is_named_for(name: str, subjects: set[str]) -> bool:
    return any(name == subject or name.startswith(f"{subject}_") for subject in subjects)


def test_every_folder_of_tests_has_a_room() -> None:
    """A room that is renamed takes its tests with it."""
    folders = {
        str(file.parent.relative_to(ROOT / "tests"))
        for package in PACKAGES
        for file in (ROOT / "tests" / package).rglob("*.py")
    }
    assert set() == folders - set(ROOMS)


def test_requests_have_schemas_that_keep_nothing_they_refuse() -> None:
    """Schemas of the API are derived from its own, not from marshmallow's."""
    imports = re.compile(r"from marshmallow import .*\bSchema\b|marshmallow\.Schema\b")
    found = {file for file in (ROOT / "api").rglob("*.py") if imports.search(file.read_text())}
    assert found == {ROOT / "api" / "http" / "schema.py"}


def test_only_runs_changes_a_run() -> None:
    """The table `runs` is written by the modules of `shared/runs` alone."""
    writes = re.compile(r"\b(?:update|insert|delete)\(runs\)|(?:UPDATE|INTO|DELETE FROM) runs\b")
    assert {"shared/runs"} == {room for room, text in _sources() if writes.search(text)}


def test_statements_write_the_tables_of_their_room() -> None:
    """SQL that is a text keeps to the contracts, too, which know imports alone."""
    may_use = _rooms_by_table()
    writes = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM) (\w+)")
    found = {
        (room, table)
        for room, text in _sources()
        for table in writes.findall(text)
        if room not in may_use.get(table, room) and room not in OF_ALL_TABLES
    }

    assert set() == found
    assert {*metadata.tables} == {*may_use}


def _sources() -> Iterator[tuple[str, str]]:
    """Yield room and text of each module, and of each statement in a file of its own."""
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*"):
            if file.suffix in {".py", ".sql"}:
                room = file.parents[file.suffix == ".sql"]
                yield str(room.relative_to(ROOT)), file.read_text()


def _rooms_by_table() -> dict[str, set[str]]:
    """Return the rooms that may use each table by the contracts of import-linter."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {}
    for contract in settings["tool"]["importlinter"]["contracts"]:
        for name in contract.get("protected_modules", ()):
            importers = contract["allowed_importers"]
            rooms = {room.removeprefix("arkloop.").replace(".", "/") for room in importers}
            members = vars(importlib.import_module(name)).values()
            found |= {member.name: rooms for member in members if isinstance(member, Table)}
    return found


def test_no_module_is_named_for_nothing() -> None:
    """A module or class has the name of its concept, not of a drawer."""
    drawer = re.compile(r"^(?:utils?|helpers?|managers?|common|base)$")
    drawer_class = re.compile(r"^\s*class \w*(?:Manager|Repository|Helper)\b", re.MULTILINE)
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    found = [str(file) for file in files if drawer.match(file.stem)]
    found += [str(file) for file in files if drawer_class.search(file.read_text())]
    assert [] == found
