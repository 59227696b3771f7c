"""Random tokens that stand for a right until they are used or end; only their hash is stored."""

import hashlib
import secrets


def make(prefix: str = "") -> str:
    """Make a token with 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """Hash a token: SHA-256, hex. It is random, so that nothing slower is needed."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
