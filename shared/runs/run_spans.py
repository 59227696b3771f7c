"""The spans of runs in their traces: their creation, their claims, and attempts that were lost.

    request (SERVER) → create run (PRODUCER) → claim run (CONSUMER) → invoke_agent (INTERNAL)

A run that waits, for a minute or for days, has one `claim run` and one `invoke_agent` for each
attempt, side by side in the one trace that its `trace_id` names.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from uuid import UUID

from sqlalchemy import Connection, RowMapping

from arkloop.shared import spans
from arkloop.shared.claim import Claim
from arkloop.shared.ids import span_id_of
from arkloop.shared.spans import Common, Kind, Span
from arkloop.shared.storage import queue
from arkloop.shared.storage.sql_files import statement

_FIND_CLAIM_EVENTS = statement(__package__, "find_claim_events")

#: The `error.type` of an attempt whose worker is gone.
LOST = "worker_lost"

_MESSAGES = (("messaging.system", "celery"), ("messaging.destination.name", queue.EXECUTE))
_CREATES = (
    *_MESSAGES,
    ("messaging.operation.type", "create"),
    ("messaging.operation.name", "create"),
)
_CLAIMS = (
    *_MESSAGES,
    ("messaging.operation.type", "receive"),
    ("messaging.operation.name", "claim"),
)
_CLAIMS_BY_MESSAGE = (*_CLAIMS, ("arkloop.found_by", "message"))
_CLAIMS_BY_POLL = (*_CLAIMS, ("arkloop.found_by", "poll"))


def attempt_key(run_id: UUID | str, fence: int) -> str:
    """Return what names the span of an attempt: each has a fence of its own."""
    return f"{run_id}:{fence}"


def created(run_id: UUID, trace_id: str, org_id: UUID, *, began: int) -> None:
    """Record that a run was created, which took from `began` (in ns since 1970) until now.

    A worker may claim the run before this is called: right after the commit.
    """
    if not spans.is_on():
        return
    parent = spans.current.get()
    name = str(run_id)
    span = spans.begin(
        "create run",
        Kind.PRODUCER,
        trace_id=trace_id,
        span_id=span_id_of(name),
        parent_id=parent.span_id if parent and parent.trace_id == trace_id else None,
        common=_CREATES,
        attributes={
            "messaging.message.id": name,
            "arkloop.run.id": name,
            "arkloop.org.id": str(org_id),
        },
    )
    span.began = began
    span.end()


def begin_attempt(claim: Claim, *, began: int, by_message: bool) -> Span:
    """Record the claim, which took from `began` (in ns since 1970) until now; begin the attempt."""
    if not spans.is_on() or not spans.is_sampled(claim.trace_id):
        return spans.NONE
    run_id, org_id = str(claim.run_id), str(claim.org_id)
    claimed = spans.begin(
        "claim run",
        Kind.CONSUMER,
        trace_id=claim.trace_id,
        parent_id=span_id_of(run_id),
        common=_CLAIMS_BY_MESSAGE if by_message else _CLAIMS_BY_POLL,
        attributes={
            "messaging.message.id": run_id,
            "arkloop.queued_seconds": max(
                0.0, (claim.claimed_at - claim.queued_at).total_seconds()
            ),
            "arkloop.run.id": run_id,
            "arkloop.org.id": org_id,
        },
    )
    claimed.began = began
    claimed.end()
    name, common = _agent(claim.persona_id, claim.model)
    return spans.begin(
        name,
        Kind.INTERNAL,
        trace_id=claim.trace_id,
        span_id=span_id_of(f"{run_id}:{claim.fence}"),
        parent_id=claimed.span_id,
        common=common,
        attributes={
            "gen_ai.conversation.id": str(claim.thread_id),
            "arkloop.run.id": run_id,
            "arkloop.org.id": org_id,
            "arkloop.attempt": claim.attempt,
        },
    )


def claimed_at(sql: Connection, rows: Sequence[RowMapping]) -> Mapping[UUID, int]:
    """Return when these runs were claimed last, in ns since 1970; none of those without spans."""
    ids = [run["id"] for run in rows if _is_recorded(run["trace_id"])]
    if not ids:
        return {}
    found = sql.exec_driver_sql(_FIND_CLAIM_EVENTS, {"ids": ids}).all()
    times = {
        id_: datetime.fromisoformat(json.loads(payload)["created_at"]) for id_, payload in found
    }
    return {id_: int(at.timestamp() * 1e9) for id_, at in times.items()}


def lost(run: RowMapping, claimed: Mapping[UUID, int]) -> None:
    """Record the attempt that a lost worker cannot record itself; `run` has the fence of that.

    Its finished calls are in the trace already, as its children.
    """
    if not _is_recorded(run["trace_id"]):
        return
    name, common = _agent(run["persona_id"], run["model"])
    span = spans.begin(
        name,
        Kind.INTERNAL,
        trace_id=run["trace_id"],
        span_id=span_id_of(attempt_key(run["id"], run["fence"])),
        parent_id=span_id_of(str(run["id"])),
        common=common,
        attributes={
            "gen_ai.conversation.id": str(run["thread_id"]),
            "arkloop.run.id": str(run["id"]),
            "arkloop.org.id": str(run["org_id"]),
            "arkloop.outcome": LOST,
        },
    )
    span.began = claimed.get(run["id"], span.began)
    span.fail(LOST)
    span.end()


def _is_recorded(trace_id: str) -> bool:
    return spans.is_on() and spans.is_sampled(trace_id)


@lru_cache(1_000)
def _agent(persona_id: str, model: str) -> tuple[str, Common]:
    """Return the name of an attempt's span, and what all attempts of the persona have."""
    name, _, version = persona_id.partition("@")
    return f"invoke_agent {name}", (
        ("gen_ai.operation.name", "invoke_agent"),
        ("gen_ai.agent.name", name),
        ("gen_ai.agent.version", version or None),
        ("gen_ai.request.model", model),
    )
