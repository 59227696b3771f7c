"""Audit entries of requests: the actor, the address and the program are those of the request."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from uuid import UUID

from flask import request

from arkloop.api.http.client_address import client_address
from arkloop.api.http.current import actor, connections
from arkloop.shared.actors import Actor
from arkloop.shared.audit import audit_log
from arkloop.shared.audit.audit_log import AppendLater, By, Detail, NewEntry, Origin
from arkloop.shared.runs import commands
from arkloop.shared.runs.pending_calls import CallResult
from arkloop.shared.storage.connections import Connections, Transaction

#: What an entry has of a request for approval.
_OF_APPROVAL = ("request_id", "tool_call_id", "tool_name")


def record(
    tx: Transaction, action: str, target_type: str, target_id: object, **details: Detail
) -> None:
    """Record what the actor of this request does in the transaction."""
    target = (target_type, target_id)
    audit_log.record(tx, _entry(actor().org_id, action, By.actor(actor()), target, details))


def record_of_operator(
    tx: Transaction,
    org_id: UUID,
    action: str,
    target_type: str,
    target_id: object,
    **details: Detail,
) -> None:
    """Record in an org's log what an operator does there; from where is not the org's to know."""
    by = By(type="operator", user_id=actor().user_id)
    target = (target_type, target_id)
    entry = NewEntry(org_id=org_id, action=action, by=by, target=target, details=details)
    audit_log.record(tx, entry)


def cancel(tx: Transaction, run_id: UUID) -> None:
    """Cancel a run as `commands.cancel` does, and record it if the run had not ended."""
    if commands.cancel(tx, actor(), run_id):
        record(tx, "run.cancelled", "run", run_id)


def cancel_at_once(run_id: UUID) -> bool:
    """Cancel and record as `cancel` does, in as few round trips as possible.

    Returns whether the run had not ended.
    """
    who = actor()
    entry = _entry(who.org_id, "run.cancelled", By.actor(who), ("run", run_id), {})
    return commands.cancel_and_record(connections(), who, run_id, entry)


def cancel_after_leave(connections: Connections, who: Actor, run_id: UUID) -> None:
    """Cancel a run because its client has left, and record that; outside of any request."""
    entry = NewEntry(
        org_id=who.org_id,
        action="run.cancelled",
        by=By.actor(who),
        target=("run", run_id),
        details={"reason": "client_left"},
    )
    commands.cancel_and_record(connections, who, run_id, entry)


def answer(
    tx: Transaction,
    run_id: UUID,
    content: str,
    request_id: UUID | None,
    results: Sequence[CallResult] = (),
) -> None:
    """Answer a run as `commands.answer` does, and record who has approved or denied which call.

    The arguments of the call and the reason of a denial are in the run's events, and stay there.
    """
    answered = commands.answer(tx, actor(), run_id, content, request_id, results)
    if answered is not None:
        asked = {name: answered.request.get(name) for name in _OF_APPROVAL}
        decision = answered.reply.decision
        record(tx, "run.approval_answered", "run", run_id, **asked, decision=decision)


def record_login(
    tx: Transaction, action: str, *, user_id: UUID, org_id: UUID, **details: Detail
) -> None:
    """Record what somebody does who has no token yet, but has proved to be this user."""
    by = By(type="user", user_id=user_id)
    audit_log.record(tx, _entry(org_id, action, by, ("user", user_id), details))


def record_logout(tx: Transaction, *, user_id: UUID, org_id: UUID, session_id: UUID) -> None:
    """Record that somebody ends the login by which they have proved to be this user."""
    by, target = By(type="user", user_id=user_id), ("session", session_id)
    audit_log.record(tx, _entry(org_id, "auth.logged_out", by, target, {}))


def record_failed_login(*, user_id: UUID, org_id: UUID) -> None:
    """Record, beside the response, that somebody did not know the password of this user.

    The response must not take longer than that for a login that does not exist.
    """
    entry = _entry(org_id, "auth.login_failed", audit_log.UNKNOWN, ("user", user_id), {})
    connections().notify(AppendLater(entry))


def record_refused_login(*, org_id: UUID, provider_id: UUID, **details: Detail) -> None:
    """Record, beside the response, that a login by the org's identity provider was refused."""
    target = ("identity_provider", provider_id)
    entry = _entry(org_id, "auth.login_failed", audit_log.UNKNOWN, target, details)
    connections().notify(AppendLater(entry))


def record_denial(method: str, rule: str) -> None:
    """Record, beside the response, that the actor of this request may not do what it asked for."""
    target = ("endpoint", f"{method} {rule}")
    path = request.path
    entry = _entry(actor().org_id, "access.denied", By.actor(actor()), target, {"path": path})
    connections().notify(AppendLater(entry))


def _entry(
    org_id: UUID,
    action: str,
    by: By,
    target: tuple[str, object] | None,
    details: Mapping[str, Detail],
) -> NewEntry:
    origin = Origin(ip=client_address(), user_agent=request.headers.get("User-Agent"))
    return NewEntry(
        org_id=org_id, action=action, by=by, target=target, details=details, origin=origin
    )


def texts_of(limits: Mapping[str, Decimal | None]) -> dict[str, Detail]:
    """Return limits as details: an entry has no fractions, which readers write differently."""
    return {name: None if limit is None else str(limit) for name, limit in limits.items()}
