"""The limit on attempts to guess a password.

It is by the login that is guessed, whether it exists or not, and not by the address of the caller,
which behind a proxy is the proxy's. A password that fits ends the count. While Redis is away, each
web process counts for itself.
"""

import hashlib
from typing import cast
from uuid import UUID

from flask import current_app
from limits import RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter

from arkloop.shared.errors import TooManyAttempts
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.shared_limiter import SharedLimiter

ATTEMPTS, MINUTES = 10, 5
_LIMIT = RateLimitItemPerMinute(ATTEMPTS, MINUTES)


class PasswordAttempts:
    """The attempts of the last minutes, over all web processes."""

    def __init__(self, connections: Connections) -> None:
        self._limiter = SharedLimiter(connections, FixedWindowRateLimiter, Keys.password_attempts)

    def count(self, whose: str | UUID) -> None:
        """Count an attempt for this login, as logins are compared, or user id, before its password
        is compared.

        Attempts that come at once are counted one by one: none is compared beyond the limit.

        Raises:
            TooManyAttempts: as many were made as may be.
        """
        seconds = self._limiter.hit(_LIMIT, _name(whose))
        if seconds is not None:
            raise TooManyAttempts().after(seconds)

    def forget(self, whose: str | UUID) -> None:
        """Forget the attempts for this login or user id: the last one had the right password."""
        self._limiter.forget(_LIMIT, _name(whose))


def password_attempts() -> PasswordAttempts:
    """Return this process's count of attempts."""
    return cast(PasswordAttempts, current_app.extensions["arkloop.password_attempts"])


def _name(whose: str | UUID) -> str:
    """Return what stands in Redis instead of a login, which may be an email address.

    The id of a user stands for itself: a login may be spelled like one, but its hash is not.
    """
    return str(whose) if isinstance(whose, UUID) else hashlib.sha256(whose.encode()).hexdigest()
