"""Passwords as argon2id hashes (RFC 9106), made without holding up the process."""

from functools import cache
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from gevent import monkey
from gevent.threadpool import ThreadPool

#: OWASP's second choice: 19 MiB, so that a burst of logins does not eat the machine.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_PARALLEL_HASHES = 2


def hash_(password: str) -> str:
    return str(_beside(_HASHER.hash, password))


def verify(password: str, hash_of_it: str | None) -> bool:
    """Return whether it is the password; without a hash this takes as long, and is False."""
    expected = hash_of_it or _hash_of_nothing()
    return bool(_beside(_matches, expected, password)) and hash_of_it is not None


def _matches(hash_of_it: str, password: str) -> bool:
    try:
        return _HASHER.verify(hash_of_it, password)
    except (VerificationError, InvalidHashError):
        return False


@cache
def _hash_of_nothing() -> str:
    return hash_("nobody's password")


def _beside(function: Any, *args: str) -> object:
    """Call in a native thread where threads are greenlets, since argon2 would stop all of them."""
    if monkey.is_module_patched("threading"):
        return _threads().apply(function, args)
    return function(*args)


@cache
def _threads() -> ThreadPool:
    return ThreadPool(_PARALLEL_HASHES)
