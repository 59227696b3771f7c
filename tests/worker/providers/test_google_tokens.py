"""Tokens of Google's service accounts; `test_anthropic_client.py` has the whole exchange."""

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from arkloop.shared.catalog.platforms import credentials_of
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers import google_tokens
from tests.worker.providers.platform_server import PlatformServer
from tests.worker.providers.test_anthropic_client import service_account


def test_a_refused_account_is_an_auth_failure() -> None:
    """Another key signs the claim than the one that Google knows: the next route takes over."""
    key = generate_private_key(65537, 2048)
    with PlatformServer(generate_private_key(65537, 2048).public_key()) as server:
        credentials = credentials_of(service_account(key, server.url))
        with httpx2.Client() as http, pytest.raises(ProviderError) as caught:
            google_tokens.token(credentials, http)

    assert "provider.auth" == caught.value.code
