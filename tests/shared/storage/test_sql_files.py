"""SQL statements in files of their own."""

import re
import tomllib
from pathlib import Path

import pytest

from arkloop.shared.storage import sql_files

ROOT = Path(__file__).parents[3]
FILES = sorted(ROOT.glob("shared/**/sql/*.sql"))
#: Of later versions than the oldest one that is supported, and apt to be used here.
SINCE_POSTGRES_14 = re.compile(
    r"\b(date_bin|string_to_table|trim_array|range_agg|any_value|json_table|uuidv7)\("
    r"|\bMERGE INTO\b"
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_has_one_statement_and_says_what_it_does(file: Path) -> None:
    """The first line is a comment; the driver parses a statement of this length once."""
    package = ".".join(("arkloop", *file.relative_to(ROOT).parts[:-2]))
    loaded = sql_files.statement(package, file.stem)

    assert file.read_text(encoding="utf-8").startswith("-- ")
    assert "--" not in loaded
    assert ";" not in loaded
    assert len(loaded) <= sql_files.MAX_CHARACTERS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_needs_no_later_postgres_than_13(file: Path) -> None:
    """The tests' own server is a later one, and knows more."""
    package = ".".join(("arkloop", *file.relative_to(ROOT).parts[:-2]))

    assert SINCE_POSTGRES_14.search(sql_files.statement(package, file.stem)) is None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_in_the_wheel(file: Path) -> None:
    """The package of each file declares it as its data."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    data = settings["tool"]["setuptools"]["package-data"]
    package = ".".join(("arkloop", *file.relative_to(ROOT).parts[:-2]))

    assert "sql/*.sql" in data[package]
