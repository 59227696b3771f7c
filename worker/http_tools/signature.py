"""Signatures of the Standard Webhooks specification, version 1.0.0, with symmetric secrets.

Not by the library of that name: it is a client for all directions, and these are ten lines.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable

from arkloop.shared.catalog.http_tools import SECRET_PREFIX


def signed_headers(
    secrets: Iterable[str], message_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """Return the three headers of a message, with a signature by each secret.

    `message_id` contains no dot: the parts of what is signed are separated by dots.
    """
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    signatures = [f"v1,{_signature(secret, signed)}" for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
