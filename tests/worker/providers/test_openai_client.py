"""OpenAI's models in Azure: paths, versions, keys and prompts."""

import json
from dataclasses import replace

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.security.egress import Policy
from arkloop.worker import providers
from arkloop.worker.contract.messages import TextDelta
from arkloop.worker.contract.stop_signal import StopSignal
from tests.worker.providers.fake_vendor import REQUEST
from tests.worker.providers.platform_server import KEY, PlatformServer


@pytest.mark.parametrize("end", ["/", "/openai/v1/", "/openai/v1"])
@pytest.mark.parametrize("is_of_org", [True, False])
@pytest.mark.parametrize(
    ("api", "version", "path"),
    [
        (None, None, "/openai/v1/responses"),
        ("chat", None, "/openai/v1/chat/completions"),
        (None, "2025-04-01-preview", "/openai/responses?api-version=2025-04-01-preview"),
        (
            "chat",
            "2025-04-01-preview",
            "/openai/deployments/gpt-5/chat/completions?api-version=2025-04-01-preview",
        ),
    ],
)
def test_azure(
    is_of_org: bool,
    api: str | None,
    version: str | None,
    path: str,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The v1 API without a version, else the one that the version names; the Responses API
    unless the route says otherwise. The address may have the path that the portal shows.
    """
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "of-the-operator")
    with PlatformServer() as server:
        route = Route(
            id="r",
            provider="openai",
            model="gpt-5",
            platform="azure",
            api=api,
            api_version=version,
            base_url=server.url + end,
            api_key=KEY,
            is_of_org=is_of_org,
        )
        egress = Policy.of(["127.0.0.0/8"]) if is_of_org else None
        provider = providers.load(route, faults=False, egress=egress)
        chunks = list(provider.stream(replace(REQUEST, model="gpt-5"), StopSignal()))
        provider.close()

    assert [] == server.refused
    assert [path] == server.paths
    assert TextDelta("Hi") in chunks
    assert not [value for value in server.headers[0].values() if "operator" in value]


def test_the_system_prompt_is_a_message_of_the_developer() -> None:
    """OpenAI caches the input alone, and `instructions` come after it for newer models."""
    with PlatformServer() as server:
        route = Route(
            id="r",
            provider="openai",
            model="gpt-6.2-sol",
            platform="azure",
            base_url=server.url,
            api_key=KEY,
        )
        provider = providers.load(route, faults=False)
        list(provider.stream(REQUEST, StopSignal()))
        provider.close()

    [sent] = map(json.loads, server.sent)
    assert "instructions" not in sent
    assert [
        {"type": "message", "role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": "Hi"},
    ] == sent["input"]
