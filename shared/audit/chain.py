"""The chain of an org's audit entries: what is hashed, and how.

Each entry has the SHA-256 of its own canonical JSON (RFC 8785), in which stands the hash of the
entry before it. One hash that is kept elsewhere shows later whether anything before it was changed.
`docs/how-to/audit-log.md` has a program for that, written without this module.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Row

from arkloop.shared.times import rfc3339

#: The hash before the first entry.
GENESIS = "0" * 64


class Head(NamedTuple):
    """The newest entry of a chain; without any, `seq` is 0."""

    seq: int
    hash: str


def contents(entry: Row[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry as clients see it, without its hash: this is what the hash is of."""
    fields = entry if isinstance(entry, Mapping) else entry._mapping
    target = None
    if fields["target_type"] is not None:
        target = {"type": fields["target_type"], "id": fields["target_id"]}
    return {
        "org_id": str(fields["org_id"]),
        "seq": fields["seq"],
        "created_at": rfc3339(fields["created_at"]),
        "action": fields["action"],
        "actor": {
            "type": fields["actor_type"],
            "user_id": _text(fields["actor_user_id"]),
            "api_key_id": _text(fields["actor_api_key_id"]),
            "end_user_id": fields["actor_end_user_id"],
        },
        "target": target,
        "details": fields["details"],
        "ip": fields["ip"],
        "user_agent": fields["user_agent"],
        "prev_hash": fields["prev_hash"],
    }


def hash_of(contents: Mapping[str, Any]) -> str:
    """Hash the canonical form: sorted keys, no spaces, UTF-8.

    This is RFC 8785 for what entries consist of: names in ASCII, texts, integers below 2^53,
    booleans and null. `NewEntry` takes nothing else.
    """
    return hashlib.sha256(_canonical(contents).encode()).hexdigest()


def pieces(contents: Mapping[str, Any]) -> list[str]:
    """Return the canonical form in the four pieces around the values of `created_at`, `prev_hash`
    and `seq`, in this order: an append learns these under the lock of the chain.
    """
    made = ["{"]
    for name in sorted(contents):
        key = f'"{name}":' if made[-1] == "{" else f',"{name}":'
        if name == "seq":
            made[-1:] = [made[-1] + key, ""]
        elif name in ("created_at", "prev_hash"):
            made[-1:] = [f'{made[-1]}{key}"', '"']
        else:
            made[-1] += key + _canonical(contents[name])
    made[-1] += "}"
    return made


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _text(id_: object) -> str | None:
    return None if id_ is None else str(id_)
