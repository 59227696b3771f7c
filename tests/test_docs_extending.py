"""Places for new code, as `docs/how-to/extending.md` names them."""

import re
import tomllib

from arkloop.cli.main import ENTRIES
from tests.test_docs import DOCS, ROOT

GUIDE = (DOCS / "how-to/extending.md").read_text()


def test_new_modules_have_a_folder_that_takes_them() -> None:
    """Each `<name>.py` is in a room below those whose modules `pyproject.toml` lists one by one."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    listed = {
        container.removeprefix("arkloop.")
        for contract in contracts["contracts"]
        if contract.get("exhaustive")
        for container in contract["containers"]
    }
    folders = set(re.findall(r"`([\w/]+)/<\w+>\w*\.py`", GUIDE))
    assert {"worker/tools", "api/endpoints"} <= folders

    assert {"shared", "api", "worker", "cli"} == listed
    assert [] == [name for name in folders if name in listed or not (ROOT / name).is_dir()]


def test_commands_are_in_the_folders_that_the_guide_names() -> None:
    """A command is a module of a folder; `keys` alone is both for the API and for the database."""
    places = {name: entry.place.partition(":")[0] for name, entry in ENTRIES.items()}

    assert ["keys"] == [name for name, module in places.items() if "." not in module]


def test_each_kind_of_addition_has_a_heading() -> None:
    """A reader finds it in the list of sections."""
    kinds = "tool, persona, provider, event type, endpoint, protocol, error, setting, Redis key"
    kinds += ", metric, way a run changes state, column or table, background task, sub-command"

    headings = re.findall(r"^## An? (.+)$", GUIDE, re.MULTILINE)
    assert kinds.split(", ") == headings
