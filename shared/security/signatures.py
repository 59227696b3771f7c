"""Signatures of the Standard Webhooks specification, version 1.0.0, with symmetric secrets.

Not by the library of that name: it is a client for all directions, and these are ten lines.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable

_SECRET_BYTES = 32
_PREFIX = "whsec_"


def new_secret() -> str:
    """Make a signing secret in the form that the specification gives it."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(
    signing_secrets: Iterable[str], message_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """Return the three headers of a message, with a signature by each secret.

    `message_id` contains no dot: the parts of what is signed are separated by dots.
    """
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    signatures = [f"v1,{_signature(secret, signed)}" for secret in signing_secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
