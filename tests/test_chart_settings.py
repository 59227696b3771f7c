"""The settings of the Helm chart's values: those that are secrets belong into a Secret."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from arkloop.shared.config import Settings

ROOT = Path(__file__).parents[1]
_SCHEMA = json.loads((ROOT / "deploy/helm/arkloop/values.schema.json").read_text())
_NAMES = _SCHEMA["properties"]["settings"]["propertyNames"]
#: How the names of secrets end. URLs of stores have passwords.
_SECRET = re.compile(
    r"(?:DATABASE_URL|REDIS_URL|BROKER_URL|SECRET|_KEY|HEADERS|PASSWORD|TOKEN)$",
)


def is_accepted(name: str) -> bool:
    is_name = re.search(_NAMES["pattern"], name) is not None
    return is_name and re.search(_NAMES["not"]["pattern"], name) is None


def documented() -> list[str]:
    """Return the variables of the first table of `configuration.md`."""
    page = (ROOT / "docs/reference/configuration.md").read_text()
    table = page.partition("\n## Settings\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_no_secret_is_accepted_among_the_settings() -> None:
    """Everybody who may read a Deployment reads its variables, and the migration lacks most."""
    secrets = [name for name in documented() if _SECRET.search(name)]

    assert len(secrets) > 10
    assert [] == [name for name in secrets if is_accepted(name)]


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_the_secrets_of_awss_sdk_are_not_accepted(name: str) -> None:
    """The SDK looks for its credentials in the environment, too."""
    assert not is_accepted(name)


def test_other_settings_are_accepted() -> None:
    """All but secrets, and those that the chart itself decides."""
    decided = {
        *("ARKLOOP_HOST", "ARKLOOP_PORT", "ARKLOOP_API_WORKERS", "ARKLOOP_WORKER_CONCURRENCY"),
        *("ARKLOOP_ROUTES", "ARKLOOP_FILES_DIR", "PORT", "WEB_CONCURRENCY"),
        *("ARKLOOP_METRICS_PORT", "ARKLOOP_METRICS_HOST", "ARKLOOP_METRICS_DIR"),
    }
    others = {name for name in documented() if not _SECRET.search(name)} - decided

    assert len(others) > 50
    assert set() == {name for name in others if not is_accepted(name)}
    assert set() == {name for name in decided if is_accepted(name)}


def test_a_secret_is_known_by_its_name() -> None:
    """What `Settings` keeps out of logs has a name by which these tests find it."""
    hidden = {field.name.upper() for field in fields(Settings) if not field.repr}

    assert "JWT_SECRET" in hidden
    assert set() == {name for name in hidden if not _SECRET.search(name)}
