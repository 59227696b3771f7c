"""Providers at platforms: their options and credentials over HTTP."""

from typing import Any

import pytest

from arkloop.shared.catalog.catalog import Catalog
from tests.api.endpoints.made_providers import PATH, made
from tests.clients import User, details_of
from tests.shared.catalog.test_platforms import ACCOUNT, AWS
from tests.stored_runs import StoredRuns

BEDROCK = {"kind": "anthropic", "platform": "bedrock", "region": "us-east-1", "credentials": AWS}


def secret_of(stored: StoredRuns, alice: User, provider: dict[str, Any]) -> str | None:
    """Return the decrypted secret of a provider's only model."""
    [model] = provider["models"]
    route = Catalog(stored.connections, {}).route(alice.org_id, model["id"])
    assert route is not None
    return route.api_key


def test_credentials_are_stored_and_never_shown(alice: User, stored: StoredRuns) -> None:
    """Encrypted as keys are."""
    provider = made(alice, **BEDROCK, models=[{"model": "anthropic.claude-haiku-4-5-v1:0"}])

    shown = {name: provider[name] for name in ("platform", "region", "project_id", "api_version")}
    expected = {"platform": "bedrock", "region": "us-east-1", "project_id": None}
    assert {**expected, "api_version": None} == shown
    assert (True, None) == (provider["has_api_key"], provider["api_key_last_four"])
    assert AWS["aws_secret_access_key"] not in alice.get(f"{PATH}/{provider['id']}").text
    secret = secret_of(stored, alice, provider)
    assert secret is not None
    assert AWS["aws_secret_access_key"] in secret


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "openai", "platform": "aws"}, "platform"),
        ({"kind": "openai", "platform": "azure"}, "base_url"),
        ({"kind": "anthropic", "platform": "bedrock"}, "region"),
        ({"kind": "openai", "region": "x"}, "region"),
        ({**BEDROCK, "api_version": "1"}, "api_version"),
        ({**BEDROCK, "api_key": "k"}, "credentials"),
        ({**BEDROCK, "credentials": {"aws_access_key_id": "a"}}, "credentials"),
        ({**BEDROCK, "credentials": "x"}, "credentials"),
        ({"kind": "openai", "credentials": AWS}, "credentials"),
        ({**BEDROCK, "platform": "vertex", "project_id": "p", "credentials": None, "api_key": "k"},
         "api_key"),
    ],
)  # fmt: skip
def test_what_a_platform_cannot_use_is_refused(
    alice: User, body: dict[str, Any], field: str
) -> None:
    """The field is named, and nothing is created."""
    assert [field] == list(details_of(alice.post(PATH, {"name": "n", **body})))


def test_credentials_go_only_where_they_were_given_for(alice: User) -> None:
    """A change of the platform or region requires them again."""
    provider = made(alice, **BEDROCK)
    path = f"{PATH}/{provider['id']}"

    assert ["api_key"] == list(details_of(alice.patch(path, {"region": "eu-west-1"})))
    moved = alice.patch(path, {"region": "eu-west-1", "credentials": AWS})
    assert (200, "eu-west-1") == (moved.status_code, (moved.json or {})["region"])
    vertex = {"platform": "vertex", "project_id": "p", "credentials": ACCOUNT}
    assert 200 == alice.patch(path, vertex).status_code
    assert ["project_id"] == list(details_of(alice.patch(path, {"project_id": None})))
    plain = dict.fromkeys(("platform", "region", "project_id", "credentials"))
    cleared = alice.patch(path, plain).json or {}
    assert (None, False) == (cleared["platform"], cleared["has_api_key"])
