"""Platforms that sell a vendor's models: where they are called, and with which credentials.

| platform | models | credentials |
| --- | --- | --- |
| azure | OpenAI's, in Azure | an API key of the resource |
| foundry | Anthropic's, in Microsoft Foundry | an API key of the resource |
| bedrock | Anthropic's, in Amazon Bedrock | a Bedrock API key, or an access key of AWS |
| vertex | Anthropic's, in Google's Vertex AI | a service account's key |

A secret is one text: an API key, or credentials as a JSON object.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from arkloop.shared import addresses

AWS_KEY = ("aws_access_key_id", "aws_secret_access_key")
MAX_CREDENTIAL_CHARACTERS = 8_192
GOOGLE_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address

_FORMS = {
    # A part of host names: nothing else may get into them.
    "region": re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"),
    "project_id": re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9:._-]{0,62}[A-Za-z0-9])?"),
    "api_version": re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,31}"),
}
#: The options that some platforms have.
OPTIONS = tuple(_FORMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A platform of a kind of provider, with the names of its options and credentials."""

    kind: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    has_api_key: bool = True
    credentials: tuple[str, ...] = ()
    optional_credentials: tuple[str, ...] = ()


PLATFORMS: Mapping[str, Platform] = {
    "azure": Platform(kind="openai", required=("base_url",), optional=("api_version",)),
    "bedrock": Platform(
        kind="anthropic",
        required=("region",),
        optional=("base_url",),
        credentials=AWS_KEY,
        optional_credentials=("aws_session_token",),
    ),
    "vertex": Platform(
        kind="anthropic",
        required=("region", "project_id"),
        optional=("base_url",),
        has_api_key=False,
        credentials=("client_email", "private_key"),
        # The other fields of the file that Google issues.
        optional_credentials=(
            *("token_uri", "type", "project_id", "private_key_id", "client_id", "auth_uri"),
            *("auth_provider_x509_cert_url", "client_x509_cert_url", "universe_domain"),
        ),
    ),
    "foundry": Platform(kind="anthropic", required=("base_url",)),
}


def problems(kind: str, platform: str | None, options: Mapping[str, str | None]) -> dict[str, str]:
    """Return what is wrong with a platform and its options: field → why.

    `options` may have `base_url` and the `OPTIONS`; None is not given.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if platform is None:
        return {name: "requires a `platform`" for name in given if name in _FORMS}
    known = PLATFORMS[platform]
    if known.kind != kind:
        return {"platform": f"{platform} is a platform of {known.kind} only"}
    found = {name: f"is required for {platform}" for name in known.required if name not in given}
    for name, value in given.items():
        if name not in (*known.required, *known.optional):
            found[name] = f"is not used by {platform}"
        elif name in _FORMS and not _FORMS[name].fullmatch(value):
            found[name] = f"must match {_FORMS[name].pattern}"
    return found


def sealed_text(platform: str | None, credentials: Mapping[str, Any]) -> str:
    """Return credentials as the text that is stored. Raises: ValueError: they are not usable."""
    known = PLATFORMS.get(platform or "")
    if known is None or not known.credentials:
        raise ValueError("are used by the platforms bedrock and vertex only")
    names = (*known.credentials, *known.optional_credentials)
    if unknown := sorted(set(credentials) - set(names)):
        raise ValueError(f"unknown fields: {', '.join(map(str, unknown))[:200]}")
    for name in known.credentials:
        if not credentials.get(name):
            raise ValueError(f"{name} is required")
    for name, value in credentials.items():
        if not isinstance(value, str) or len(value) > MAX_CREDENTIAL_CHARACTERS:
            raise ValueError(
                f"{name} must be a string of at most {MAX_CREDENTIAL_CHARACTERS} characters"
            )
    if platform == "vertex":
        _check_service_account(credentials)
    return json.dumps(dict(credentials))


def credentials_of(secret: str | None) -> dict[str, str]:
    """Return the credentials in a secret; empty if it is an API key."""
    if not secret or not secret.lstrip().startswith("{"):
        return {}
    try:
        found = json.loads(secret)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def check_secret(platform: str, secret: str) -> None:
    """Check the secret of a route. Raises: ValueError: the platform cannot use it."""
    if credentials := credentials_of(secret):
        sealed_text(platform, credentials)
    elif not PLATFORMS[platform].has_api_key:
        raise ValueError(f"{platform} requires the JSON of a service account's key")


def address(platform: str | None, region: str | None) -> str | None:
    """Return where a platform is called without a `base_url`, as its SDK has it; None: nowhere."""
    if platform == "bedrock":
        return f"https://bedrock-runtime.{region}.amazonaws.com"
    if platform == "vertex":
        special = {
            "global": "aiplatform.googleapis.com",
            "us": "aiplatform.us.rep.googleapis.com",
            "eu": "aiplatform.eu.rep.googleapis.com",
        }
        return f"https://{special.get(region or '', f'{region}-aiplatform.googleapis.com')}/v1"
    return None


def _check_service_account(credentials: Mapping[str, Any]) -> None:
    if not addresses.is_usable(credentials.get("token_uri", GOOGLE_TOKEN_URI), rest=".*"):
        raise ValueError(f"token_uri must be an address such as {GOOGLE_TOKEN_URI}")
    try:
        load_pem_private_key(credentials["private_key"].encode(), password=None)
    except (ValueError, TypeError):
        raise ValueError("private_key must be a private key in PEM") from None
