"""The limit on requests of one address for logins by identity providers.

It is wide: the people of a company may come from one address, and each login takes two requests.
While Redis is away, each web process counts for itself.
"""

import hashlib
from ipaddress import IPv6Address, ip_address, ip_network
from typing import cast

from flask import current_app
from limits import RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter

from arkloop.shared.errors import TooManyAttempts
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.shared_limiter import SharedLimiter

REQUESTS, MINUTES = 300, 1
_LIMIT = RateLimitItemPerMinute(REQUESTS, MINUTES)
#: A customer of a provider has that much of IPv6, and chooses the rest of each address.
_IPV6_PREFIX = 64


class ProviderAttempts:
    """The requests of the last minute, over all web processes."""

    def __init__(self, connections: Connections) -> None:
        self._limiter = SharedLimiter(connections, FixedWindowRateLimiter, Keys.provider_attempts)

    def count(self, address: str | None) -> None:
        """Count a request from this address; those without one count together.

        Raises:
            TooManyAttempts: as many were made as may be.
        """
        seconds = self._limiter.hit(_LIMIT, _name(address))
        if seconds is not None:
            why = "Too many requests for logins from this address; try again later."
            raise TooManyAttempts(why).after(seconds)


def provider_attempts() -> ProviderAttempts:
    """Return this process's count of requests."""
    return cast(ProviderAttempts, current_app.extensions["arkloop.provider_attempts"])


def _name(address: str | None) -> str:
    """Return what stands in Redis instead of an address, which may be a person's."""
    if address is not None and isinstance(ip_address(address), IPv6Address):
        without_zone = address.partition("%")[0]
        address = str(ip_network(f"{without_zone}/{_IPV6_PREFIX}", strict=False))
    return hashlib.sha256(str(address).encode()).hexdigest()
