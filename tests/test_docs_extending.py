"""Places for new code, as `docs/how-to/extending.md` names them."""

import re
import tomllib

from arkloop.cli.main import ENTRIES
from arkloop.shared.catalog import llm_providers, platforms
from arkloop.shared.catalog.model_routes import PROVIDERS
from tests.test_docs import DOCS, ROOT

GUIDE = (DOCS / "how-to/extending.md").read_text()
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
CONTRACTS = TOOLS["importlinter"]["contracts"]


def test_new_modules_have_a_folder_that_takes_them() -> None:
    """Each `<name>.py` is in a room below those whose modules `pyproject.toml` lists one by one."""
    listed = {
        container.removeprefix("arkloop.")
        for contract in CONTRACTS
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


def test_each_provider_is_independent_of_the_others() -> None:
    """Import-linter checks those alone that the contract names."""
    [contract] = [one for one in CONTRACTS if one["type"] == "independence"]
    modules = {f"arkloop.worker.providers.{name}_provider" for name in PROVIDERS}

    assert modules == {*contract["modules"]}, f"add them to {contract['name']!r} in pyproject.toml"


def test_each_provider_has_a_row_in_the_reference() -> None:
    """The first table of its page names all that there are."""
    page = (DOCS / "reference/providers.md").read_text()
    [table] = re.findall(r"^\| provider \| API .*\n((?:\|.*\n)+)", page, re.MULTILINE)

    assert {*PROVIDERS} == set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))


def test_the_console_offers_what_orgs_can_choose() -> None:
    """Its form has each kind of provider, with the platforms of that kind."""
    script = (ROOT / "api/console/static/pages/providers.js").read_text()
    [kinds] = re.findall(r"^const KINDS = (.+)$", script, re.MULTILINE)
    [offered] = re.findall(r"^const PLATFORMS = (.+)$", script, re.MULTILINE)
    listed = re.findall(r"(\w+): \[(\[.+?\])\]", offered)

    assert {*llm_providers.KINDS} == set(re.findall(r'\["(\w+)"', kinds))
    assert {
        kind: {name for name, one in platforms.PLATFORMS.items() if one.kind == kind}
        for kind in llm_providers.KINDS
    } == {kind: set(re.findall(r'\["(\w+)"', choices)) for kind, choices in listed}
