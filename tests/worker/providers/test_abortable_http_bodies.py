"""The bodies that a provider reports, which are what its platform receives."""

import json
import weakref
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from arkloop.shared.catalog.model_routes import Route
from arkloop.worker import providers
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from tests.worker.providers.fake_vendor import (
    REQUEST,
    Answer,
    openai_stream,
    raw,
    route_to,
    status,
    vendor,
)
from tests.worker.providers.platform_server import AWS, KEY, PlatformServer
from tests.worker.providers.test_anthropic_client import BEDROCK, BEDROCK_MODEL, service_account

AZURE: dict[str, Any] = {"provider": "openai", "platform": "azure", "model": "gpt-5"}
VERTEX = {"platform": "vertex", "region": "europe-west1", "project_id": "my-project"}
PLATFORMS: dict[str, dict[str, Any]] = {
    "azure": AZURE,
    "azure, chat": {**AZURE, "api": "chat"},
    "azure, with a version": {**AZURE, "api_version": "2025-04-01-preview"},
    "bedrock": {**BEDROCK, "model": BEDROCK_MODEL},
    "bedrock, signed": {**BEDROCK, "model": BEDROCK_MODEL, "api_key": json.dumps(AWS)},
    "foundry": {"platform": "foundry"},
    "vertex": VERTEX,
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_platform_receives_what_was_reported(platform: str) -> None:
    """Once for each call and before its answer, without the request for a token."""
    key = generate_private_key(65537, 2048)
    reported: list[bytes] = []
    with PlatformServer(key.public_key()) as server:
        fields = {"id": "r", "provider": "anthropic", "model": "claude-haiku-4-5", "api_key": KEY}
        if platform == "vertex":
            fields["api_key"] = service_account(key, server.url)
        below = {"foundry": "/anthropic/", "vertex": "/v1"}.get(platform, "/")
        fields |= {"base_url": server.url + below, **PLATFORMS[platform]}
        provider = providers.load(Route(**fields), faults=False)
        request = replace(REQUEST, model=fields["model"], on_send=reported.append)
        for chunk in provider.stream(request, StopSignal()):
            assert [chunk] and 1 == len(reported)
        provider.close()

    assert [] == server.refused
    assert server.sent == reported


class Report:
    """The report of a call; it stands for the content of the request's files."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def __call__(self, body: bytes) -> None:
        self.bodies.append(body)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("answer", [status("500 Internal Server Error"), raw(openai_stream())])
def test_nothing_of_a_request_outlives_its_call(kind: str, answer: Answer) -> None:
    """The memory of its files is given back when a call ends, also when it breaks off."""
    with vendor(answer) as fake:
        _fail(kind, fake.url)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_nothing_outlives_a_call_that_reaches_no_server(kind: str) -> None:
    """The errors of the connection, one raised from the other, do not keep the request."""
    with vendor() as fake:
        pass
    _fail(kind, fake.url)


def _fail(kind: str, url: str) -> None:
    """Call a provider that fails; assert that nothing of the request is left."""
    report = Report()
    provider = providers.load(route_to(kind, url), faults=False)
    with pytest.raises(ProviderError):
        list(provider.stream(replace(REQUEST, on_send=report), StopSignal()))
    assert 1 == len(report.bodies)
    kept = weakref.ref(report)
    del report

    assert kept() is None
    provider.close()
