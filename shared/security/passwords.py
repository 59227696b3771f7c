"""Passwords as argon2id hashes (RFC 9106), made without holding up the process."""

from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from arkloop.shared.native_threads import NativeThreads

#: OWASP's second choice: 19 MiB, so that a burst of logins does not eat the machine.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_THREADS = NativeThreads(2)


def hash_(password: str) -> str:
    return _THREADS.call(_HASHER.hash, password)


def verify(password: str, hash_of_it: str | None) -> bool:
    """Return whether it is the password; without a hash this takes as long, and is False.

    What is no hash of argon2, such as the mark of users without a password, counts as none.
    """
    expected = hash_of_it if (hash_of_it or "").startswith("$argon2") else None
    is_it = _THREADS.call(_matches, expected or _hash_of_nothing(), password)
    return is_it and expected is not None


def _matches(hash_of_it: str, password: str) -> bool:
    try:
        return _HASHER.verify(hash_of_it, password)
    except (VerificationError, InvalidHashError):
        return False


@cache
def _hash_of_nothing() -> str:
    return hash_("nobody's password")
