"""The audit log of an org: who has done what, in entries that are never changed.

An entry is appended in the transaction of its action, as its last step: the head of the org's
chain is locked from then on, for one round trip and the commit. A statement that is a transaction
by itself calls the function `append_audit_entry`. What is refused has no transaction and is
appended afterwards, by `AppendLater`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, ClassVar, Self
from uuid import UUID

from sqlalchemy import Connection, Row, delete, func, select

from arkloop.shared.actors import Actor
from arkloop.shared.audit import chain
from arkloop.shared.audit.chain import GENESIS, Head
from arkloop.shared.storage.arrays import TextArray
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.audit import audit_entries, audit_heads
from arkloop.shared.times import EPOCH

#: Others wait for the lock that it takes, so this is one statement.
_APPEND = "SELECT append_audit_entry(%(entry)s::jsonb, %(pieces)s::text[])"

#: What is recorded; most names begin with the type of their target.
ACTIONS = (
    "auth.logged_in",
    "auth.login_failed",
    "auth.logged_out",
    "auth.password_changed",
    "auth.session_ended",
    "auth.password_reset_created",
    "auth.password_reset",
    "api_key.created",
    "api_key.changed",
    "api_key.revoked",
    "user.created",
    "user.erased",
    "end_user.erased",
    "invitation.created",
    "invitation.revoked",
    "identity_provider.changed",
    "identity_provider.removed",
    "identity.linked",
    "member.joined",
    "member.role_changed",
    "member.removed",
    "budget.changed",
    "credits.granted",
    "org.settings_changed",
    "org.suspended",
    "org.resumed",
    "llm_provider.created",
    "llm_provider.changed",
    "llm_provider.deleted",
    "llm_model.created",
    "llm_model.changed",
    "llm_model.deleted",
    "persona.published",
    "http_tool.created",
    "http_tool.changed",
    "http_tool.deleted",
    "http_tool.secret_rotated",
    "mcp_config.created",
    "mcp_config.changed",
    "mcp_config.deleted",
    "mcp_config.grants_deleted",
    "mcp_config.tools_approved",
    "webhook_endpoint.created",
    "webhook_endpoint.changed",
    "webhook_endpoint.deleted",
    "webhook_endpoint.secret_rotated",
    "run.approval_answered",
    "run.cancelled",
    "run.requeued",
    "access.denied",
    "audit.pruned",
    "org.copied",
    "org_key.erased",
    "operator.added",
    "operator.removed",
)
#: What entries may be filtered by.
FILTERS = ("action", "actor_user_id")

PRUNED = "audit.pruned"
PRUNED_AT_ONCE = 5_000

MAX_TEXT = 200  # characters of a text that a client has sent

_UNSTORABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")

Detail = str | int | bool | None | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class By:
    """The actor of an entry: a user, an API key, an end user, the operator, or unknown."""

    type: str  # user | api_key | end_user | operator | unknown
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    end_user_id: str | None = None

    @classmethod
    def actor(cls, actor: Actor) -> Self:
        """Name the actor of a request; behind an end user stands who issued the client token."""
        kind = "user" if actor.api_key_id is None else "api_key"
        return cls(
            type=kind if actor.end_user_id is None else "end_user",
            user_id=actor.user_id,
            api_key_id=actor.api_key_id,
            end_user_id=actor.end_user_id,
        )


OPERATOR = By(type="operator")
UNKNOWN = By(type="unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The address and the program that a request came from, as far as they are known."""

    ip: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """An action to append. Details are ids, names and numbers, never secrets or prompts."""

    org_id: UUID
    action: str
    by: By
    target: tuple[str, object] | None = None  # type and id
    details: Mapping[str, Detail] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        assert self.action in ACTIONS, self.action


@dataclass(frozen=True, slots=True)
class AppendLater:
    """An entry of something that was refused, appended beside the response."""

    kind: ClassVar[str] = "audit"
    entry: NewEntry

    @property
    def subject(self) -> UUID:
        """Return the org."""
        return self.entry.org_id

    @staticmethod
    def send(connections: Connections, group: "Sequence[AppendLater]") -> None:
        """Append each in a transaction of its own: they may belong to several orgs."""
        for one in group:
            with connections.transaction() as tx:
                append(tx, one.entry)


def record(tx: Transaction, entry: NewEntry) -> None:
    """Append an entry with the last steps of the transaction."""
    tx.last.append((entry.org_id, partial(append, tx, entry)))


def append(tx: Transaction, entry: NewEntry) -> None:
    """Append an entry now; the transaction locks the org's head from here on."""
    tx.sql.exec_driver_sql(_APPEND, arguments(entry))


def arguments(entry: NewEntry) -> dict[str, str | TextArray]:
    """Return `entry` and `pieces`, the arguments of the database's `append_audit_entry`.

    A statement that calls it makes a change and records it in one round trip. It locks the org's
    head, so it must have every other lock by then.
    """
    values: dict[str, Any] = {
        "org_id": entry.org_id,
        "action": entry.action,
        "actor_type": entry.by.type,
        "actor_user_id": entry.by.user_id,
        "actor_api_key_id": entry.by.api_key_id,
        "actor_end_user_id": entry.by.end_user_id,
        "target_type": entry.target and entry.target[0],
        "target_id": entry.target and bounded(str(entry.target[1])),
        "details": {name: _storable(value) for name, value in entry.details.items()},
        "ip": entry.origin.ip and bounded(entry.origin.ip),
        "user_agent": entry.origin.user_agent and bounded(entry.origin.user_agent),
    }
    open_fields = {"seq": 0, "created_at": EPOCH, "prev_hash": GENESIS}
    pieces = chain.pieces(chain.contents(values | open_fields))
    return {"entry": json.dumps(values, default=str), "pieces": TextArray(pieces)}


def prune(tx: Transaction, org_id: UUID, before: datetime) -> int:
    """Delete the org's entries from before this time, the oldest `PRUNED_AT_ONCE` of them.

    An entry of its own says up to which one, with the hash of that: so the rest still is a chain.
    Returns the number of deleted entries.
    """
    # Nobody appends meanwhile.
    locked = select(audit_heads.c.seq).where(audit_heads.c.org_id == org_id)
    tx.sql.execute(locked.with_for_update(key_share=True))
    of_org = audit_entries.c.org_id == org_id
    oldest = select(audit_entries.c.seq, audit_entries.c.hash, audit_entries.c.created_at)
    oldest = oldest.where(of_org).order_by(audit_entries.c.seq).limit(PRUNED_AT_ONCE)
    pruned: Head | None = None
    count = 0
    for entry in tx.sql.execute(oldest):
        if entry.created_at >= before:
            break
        pruned, count = Head(entry.seq, entry.hash), count + 1
    if pruned is None:
        return 0
    tx.sql.execute(select(func.set_config("arkloop.audit_prune", "on", True)))
    tx.sql.execute(delete(audit_entries).where(of_org, audit_entries.c.seq <= pruned.seq))
    tx.sql.execute(select(func.set_config("arkloop.audit_prune", "off", True)))
    append(
        tx,
        NewEntry(
            org_id=org_id,
            action=PRUNED,
            by=OPERATOR,
            target=("audit_log", org_id),
            details={"through_seq": pruned.seq, "through_hash": pruned.hash, "entries": count},
        ),
    )
    return count


def head(sql: Connection, org_id: UUID) -> Head:
    """Return the head of the org's chain."""
    found = sql.execute(select(audit_heads).where(audit_heads.c.org_id == org_id)).one_or_none()
    return Head(0, GENESIS) if found is None else Head(found.seq, found.hash)


def list_(
    sql: Connection, org_id: UUID, filters: Mapping[str, Any], *, limit: int, before: int | None
) -> Sequence[Row[Any]]:
    """List entries, the newest first, with these values of `FILTERS`."""
    query = select(audit_entries).where(audit_entries.c.org_id == org_id)
    for name in FILTERS:
        if name in filters:
            query = query.where(audit_entries.c[name] == filters[name])
    if before is not None:
        query = query.where(audit_entries.c.seq < before)
    return sql.execute(query.order_by(audit_entries.c.seq.desc()).limit(limit)).all()


def targets(
    sql: Connection, org_id: UUID, actions: Sequence[str], *, within: timedelta
) -> Sequence[str]:
    """Return the ids of the targets, which they all have, of the org's entries of these actions
    that were appended within this time.
    """
    query = select(audit_entries.c.target_id).distinct()
    is_one = audit_entries.c.action.in_(actions)
    is_recent = audit_entries.c.created_at > func.now() - within
    return sql.scalars(query.where(audit_entries.c.org_id == org_id, is_one, is_recent)).all()


def bounded(text: str) -> str:
    """Return the text as it can be stored and shown, at most `MAX_TEXT` characters of it."""
    return _UNSTORABLE.sub("\ufffd", text[:MAX_TEXT])


def _storable(detail: Detail) -> Detail:
    if isinstance(detail, list):
        return [bounded(one) for one in detail]
    return bounded(detail) if isinstance(detail, str) else detail
