"""Platforms: which options and credentials each of them has."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from arkloop.shared.catalog import platforms
from arkloop.shared.catalog.model_routes import Route

URL = "https://r.example.com"
PEM = (
    generate_private_key(SECP256R1())
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)
ACCOUNT = {"client_email": "a@b.c", "private_key": PEM}
AWS = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "wJalrXUtnFEMI"}


@pytest.mark.parametrize(
    ("kind", "platform", "options", "fields"),
    [
        ("openai", None, {}, []),
        ("openai", None, {"base_url": URL}, []),
        ("openai", None, {"region": "x"}, ["region"]),
        ("openai", "azure", {"base_url": URL}, []),
        ("openai", "azure", {"base_url": URL, "api_version": "2025-04-01-preview"}, []),
        ("openai", "azure", {}, ["base_url"]),
        ("openai", "azure", {"base_url": URL, "api_version": "a&b=c"}, ["api_version"]),
        ("openai", "azure", {"base_url": URL, "region": "x"}, ["region"]),
        ("anthropic", "azure", {"base_url": URL}, ["platform"]),
        ("openai", "bedrock", {"region": "us-east-1"}, ["platform"]),
        ("anthropic", "bedrock", {"region": "us-east-1"}, []),
        ("anthropic", "bedrock", {}, ["region"]),
        ("anthropic", "bedrock", {"region": "x.example.com/"}, ["region"]),
        ("anthropic", "vertex", {"region": "global", "project_id": "example.com:p"}, []),
        ("anthropic", "vertex", {"project_id": "a/b"}, ["region", "project_id"]),
        ("anthropic", "foundry", {"base_url": URL}, []),
        ("anthropic", "foundry", {}, ["base_url"]),
    ],
)
def test_each_platform_has_its_options(
    kind: str, platform: str | None, options: dict[str, str | None], fields: list[str]
) -> None:
    """A missing, unused or malformed option is named."""
    assert fields == list(platforms.problems(kind, platform, options))


@pytest.mark.parametrize(
    ("platform", "credentials"),
    [
        (None, AWS),
        ("azure", AWS),
        ("bedrock", {}),
        ("bedrock", ACCOUNT),
        ("bedrock", {**AWS, "aws_secret_access_key": 5}),
        ("bedrock", {**AWS, "aws_session_token": "x" * 9_000}),
        ("vertex", AWS),
        ("vertex", {**ACCOUNT, "private_key": "nonsense"}),
        ("vertex", {**ACCOUNT, "token_uri": "ftp://x"}),
        ("vertex", {**ACCOUNT, "token_uri": "https://x:99999/token"}),
    ],
)
def test_unusable_credentials_are_refused(platform: str | None, credentials: Any) -> None:
    """They are checked before they are stored."""
    with pytest.raises(ValueError, match="."):
        platforms.sealed_text(platform, credentials)


def test_credentials_are_one_text() -> None:
    """An API key is no such text."""
    for platform, credentials in (("bedrock", AWS), ("vertex", ACCOUNT)):
        text = platforms.sealed_text(platform, credentials)
        platforms.check_secret(platform, text)
        assert credentials == platforms.credentials_of(text) == json.loads(text)
    assert {} == platforms.credentials_of("sk-key") == platforms.credentials_of("{nonsense")
    platforms.check_secret("bedrock", "an-api-key")
    with pytest.raises(ValueError, match="service account"):
        platforms.check_secret("vertex", "an-api-key")


@pytest.mark.parametrize(
    ("platform", "region", "host"),
    [
        ("bedrock", "us-east-1", "https://bedrock-runtime.us-east-1.amazonaws.com"),
        ("vertex", "europe-west1", "https://europe-west1-aiplatform.googleapis.com/v1"),
        ("vertex", "global", "https://aiplatform.googleapis.com/v1"),
        ("vertex", "eu", "https://aiplatform.eu.rep.googleapis.com/v1"),
    ],
)
def test_a_region_is_an_address(platform: str, region: str, host: str) -> None:
    """Addresses are those of the SDKs."""
    route = Route(id="r", provider="anthropic", model="m", platform=platform, region=region)

    assert host == route.address
