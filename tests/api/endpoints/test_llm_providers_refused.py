"""Providers that are refused or invisible."""

from typing import Any

import pytest

from arkloop.shared.ids import new_id
from tests.api.endpoints.made_providers import PATH, made
from tests.clients import Register, User, details_of, error_of


def test_names_are_unique(alice: User, register: Register) -> None:
    """409 names the field; another org may use it."""
    provider = made(alice, name="ours", models=[{"model": "m"}])
    made(register(), name="ours")

    for answer, field in (
        (alice.post(PATH, {"name": "ours", "kind": "openai"}), "name"),
        (alice.post(f"{PATH}/{provider['id']}/models", {"model": "m"}), "model"),
        (
            alice.post(
                PATH, {"name": "a", "kind": "openai", "models": [{"model": "m"}, {"model": "m"}]}
            ),
            "models.1.model",
        ),
    ):
        assert (409, "names.taken") == error_of(answer)
        assert answer.json is not None
        assert [field] == list(answer.json["details"])


def test_only_admins_manage_providers(alice: User, register: Register) -> None:
    """Members, and keys without the scope, get 403."""
    provider = made(alice, models=[{"model": "m"}])
    path = f"{PATH}/{provider['id']}"
    models = f"{path}/models"
    one = f"{models}/{provider['models'][0]['id']}"
    member = register(org_of=alice, role="member")
    narrow = alice.api_key("data.runs.read", "data.runs.write")
    admin = register(org_of=alice, role="admin")

    for user in (member, narrow):
        for method, address in (
            ("POST", PATH),
            ("GET", PATH),
            ("GET", path),
            ("PATCH", path),
            ("DELETE", path),
            ("POST", models),
            ("GET", models),
            ("GET", one),
            ("PATCH", one),
            ("DELETE", one),
        ):
            answer = user.call(method, address, json={})
            assert (403, "auth.forbidden") == error_of(answer), (method, address)
    assert 200 == admin.get(path).status_code


def test_another_orgs_provider_is_not_there(alice: User, register: Register) -> None:
    """404 as for one that does not exist, on every path; its list does not have it."""
    provider = made(alice, models=[{"model": "m"}])
    stranger = register()
    own = made(stranger)
    model_id = provider["models"][0]["id"]
    real, imagined = f"{PATH}/{provider['id']}", f"{PATH}/{new_id()}"

    for method, tail, body in (
        ("GET", "", None),
        ("PATCH", "", {"name": "mine"}),
        ("DELETE", "", None),
        ("POST", "/models", {"model": "x"}),
        ("GET", "/models", None),
        ("GET", f"/models/{model_id}", None),
        ("PATCH", f"/models/{model_id}", {"model": "x"}),
        ("DELETE", f"/models/{model_id}", None),
    ):
        answer = stranger.call(method, real + tail, json=body)
        expected = stranger.call(method, imagined + tail, json=body)
        assert (404, "llm_providers.not_found") == error_of(answer) == error_of(expected)
    through_own = stranger.get(f"{PATH}/{own['id']}/models/{model_id}")
    assert (404, "llm_providers.model_not_found") == error_of(through_own)
    assert [own] == stranger.get(PATH).json
    assert provider == alice.get(real).json


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "n" * 201}, "name"),
        ({"name": " "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a "}, "name"),
        ({"kind": "scripted"}, "kind"),
        ({"kind": None}, "kind"),
        ({"base_url": "http://127.0.0.1/v1"}, "base_url"),
        ({"base_url": "http://2130706433/v1"}, "base_url"),
        ({"base_url": "https://user@example.com/v1"}, "base_url"),
        ({"base_url": "https://example.com/v1?a=b"}, "base_url"),
        ({"base_url": "https://example.com/" + "a" * 2000}, "base_url"),
        ({"base_url": "https://example.com/" + "ä" * 1900}, "base_url"),  # longer when encoded
        ({"base_url": ""}, "base_url"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "sk secret"}, "api_key"),
        ({"api_key": "sk-é"}, "api_key"),
        ({"api_key": "sk-1\n"}, "api_key"),
        ({"api_key": "k" * 1001}, "api_key"),
        ({"api_key": 1}, "api_key"),
        ({"org_id": str(new_id())}, "org_id"),
        ({"api_key_last_four": "abcd"}, "api_key_last_four"),
        ({"models": {}}, "models"),
        ({"models": [{"model": "m"}] * 51}, "models"),
        ({"models": [{}]}, "models.0.model"),
        ({"models": [{"model": ""}]}, "models.0.model"),
        ({"models": [{"model": "a\tb"}]}, "models.0.model"),
        ({"models": [{"model": " m"}]}, "models.0.model"),
        ({"models": [{"model": "m", "id": str(new_id())}]}, "models.0.id"),
        ({"models": [{"model": "m", "priority": -1}]}, "models.0.priority"),
        ({"models": [{"model": "m", "priority": True}]}, "models.0.priority"),
        ({"models": [{"model": "m", "priority": 1.0}]}, "models.0.priority"),
        ({"models": [{"model": "m", "is_default": None}]}, "models.0.is_default"),
        ({"models": [{"model": "m", "is_default": 1}]}, "models.0.is_default"),
        (
            {"models": [{"model": name, "is_default": name != "m"} for name in ("a", "m", "b")]},
            "models.2.is_default",
        ),
        ({"models": [{"model": "m", "prices": {"output": 1}}]}, "models.0.prices.input"),
        ({"models": [{"model": "m", "prices": {"input": 1}}]}, "models.0.prices.output"),
        (
            {"models": [{"model": "m", "prices": {"input": -1, "output": 1}}]},
            "models.0.prices.input",
        ),
        (
            {"models": [{"model": "m", "prices": {"input": 1e-9, "output": 1}}]},
            "models.0.prices.input",
        ),
        (
            {"models": [{"model": "m", "prices": {"input": "1", "output": 1}}]},
            "models.0.prices.input",
        ),
        (
            {"models": [{"model": "m", "prices": {"input": 1, "output": 1, "more": 1}}]},
            "models.0.prices.more",
        ),
        ({"models": [{"model": "m", "max_output_tokens": 0}]}, "models.0.max_output_tokens"),
        ({"models": [{"model": "m", "model_settings": []}]}, "models.0.model_settings"),
        (
            {"models": [{"model": "m", "model_settings": {"seed": "x"}}]},
            "models.0.model_settings.seed",
        ),
        ({"models": [{"model": "m", "context_tokens": 10**9}]}, "models.0.context_tokens"),
        ({"models": [{"model": "m", "api": "completions"}]}, "models.0.api"),
        (
            {"kind": "anthropic", "models": [{"model": "m"}, {"model": "n", "api": "chat"}]},
            "models.1.api",
        ),
        ({"models": [{"model": "m", "first_byte_seconds": 0}]}, "models.0.first_byte_seconds"),
        ({"models": [{"model": "m", "idle_seconds": 3601}]}, "models.0.idle_seconds"),
        ({"models": [{"model": "m", "accepts": ["audio"]}]}, "models.0.accepts.0"),
        ({"models": [{"model": "m", "idle_seconds": 1.5}]}, "models.0.idle_seconds"),
        ({"models": [{"model": "m", "requests_per_minute": 0}]}, "models.0.requests_per_minute"),
        ({"models": [{"model": "m", "tokens_per_minute": 2**62}]}, "models.0.tokens_per_minute"),
    ],
)
def test_a_bad_provider_is_refused(alice: User, body: dict[str, Any], field: str) -> None:
    """422 names the field, and nothing is made."""
    answer = alice.post(PATH, {"name": "a", "kind": "openai", **body})

    assert [field] == list(details_of(answer))
    assert [] == alice.get(PATH).json
