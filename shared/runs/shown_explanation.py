"""The explanation of a run as the API shows it, and the command of the operator."""

from datetime import datetime
from typing import Any
from uuid import UUID

from arkloop.shared.actors import Actor
from arkloop.shared.runs import explanation, operated_runs
from arkloop.shared.runs.states import phase_of, status_of
from arkloop.shared.storage.connections import Connections
from arkloop.shared.times import rfc3339, rfc3339_or_none


def explained(
    connections: Connections, actor: Actor, run_id: UUID, *, to_operator: bool = False
) -> dict[str, Any]:
    """Explain a run to the actor. Raises: RunNotFound, Unavailable: as `explanation.explain`."""
    run, why = explanation.explain(connections, actor, run_id, to_operator=to_operator)
    is_cancelling = run["cancel_requested_at"] is not None
    following = {"action": why.action, "at": rfc3339_or_none(why.at)}
    return {
        "run_id": str(run["id"]),
        "status": status_of(run["state"]),
        "phase": phase_of(run["state"], cancel_requested=is_cancelling),
        "reason": why.reason,
        "sentence": why.sentence,
        "since": rfc3339_or_none(why.since),
        "next": None if why.action is None else following,
        "details": _plain(why.details),
    }


def explained_to_operator(connections: Connections, run_id: UUID) -> dict[str, Any]:
    """Explain a run of any org, also of a deleted thread; `connections` work for all.

    Raises:
        RunNotFound, Unavailable
    """
    with connections.reading() as sql:
        reader = operated_runs.reader_of(sql, run_id)
    return explained(connections, reader, run_id, to_operator=True)


def _plain(value: Any) -> Any:
    """Convert the times in the details."""
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value
