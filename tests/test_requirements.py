"""The pinned dependencies, which are all that `make setup` and the image install."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_PRODUCTION = PROJECT["dependencies"]
OF_TESTS = [*OF_PRODUCTION, *chain(*PROJECT["optional-dependencies"].values())]


@pytest.mark.parametrize(
    ("file", "required"),
    [("requirements.txt", OF_PRODUCTION), ("requirements-dev.txt", OF_TESTS)],
)
def test_each_pin_is_one_that_the_project_admits(file: str, required: list[str]) -> None:
    """Pins are installed without a look at what requires them, so that nothing else would notice a
    bound that was changed.
    """
    found = _pins(file)
    refused = []
    for one in map(Requirement, required):
        pins = found.get(canonicalize_name(one.name), ())
        is_own = one.name == PROJECT["name"]  # its extras, which are all compared
        if not is_own and not (pins and all(map(one.specifier.contains, pins))):
            refused.append(f"{one}, pinned: {', '.join(pins) or 'nothing'}")

    assert [] == refused, f"{file} is outdated: run `make lock`"


def test_tests_use_what_production_installs() -> None:
    """Both files have the same versions."""
    of_tests = _pins("requirements-dev.txt")

    assert _pins("requirements.txt").items() <= of_tests.items(), "run `make lock`"


def _pins(file: str) -> dict[str, tuple[str, ...]]:
    """Return the versions of each package; markers may choose between several."""
    pins: dict[str, tuple[str, ...]] = {}
    pinned = re.compile(r"^([\w.-]+)(?:\[.*\])?==(\S+)", re.MULTILINE)
    for name, version in pinned.findall((ROOT / file).read_text()):
        package = canonicalize_name(name)
        pins[package] = (*pins.get(package, ()), version)
    return pins
