"""What every change of a run's state writes, whoever makes it."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Uuid, func, insert, literal, select

from shared import eventlog, events
from shared.events import Usage
from shared.status import RunState
from shared.tables import messages, run_events, runs

#: Owners lost within one step, after which a run is given up.
MAX_CRASHES = 3

#: What the column holds; prices are free numbers.
MAX_COST_USD = Decimal("9999999999.99999999")


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a run has used so far."""

    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal = Decimal(0)

    def columns(self) -> dict[str, Any]:
        return {
            "input_tokens": self.usage.input_tokens,
            "output_tokens": self.usage.output_tokens,
            "cache_read_tokens": self.usage.cache_read_tokens,
            "usage_source": self.usage.source,
            "cost_usd": min(self.cost_usd, MAX_COST_USD),
        }


def queued(reason: str) -> dict[str, Any]:
    """Columns of a run that waits for a worker again; `reason` is that of `run.resumed`."""
    return {
        "state": RunState.QUEUED,
        "resume_reason": reason,
        "queued_at": func.now(),
    }


def ended(state: RunState, totals: Totals, error: events.RunError | None) -> dict[str, Any]:
    """Columns of a run that has ended."""
    waited = func.extract("epoch", func.now() - runs.c.waiting_since) * 1000
    return {
        "state": state,
        "ended_at": func.now(),
        "input_expires_at": None,
        "pending_input": None,
        "waiting_ms": runs.c.waiting_ms + func.coalesce(waited, 0),
        "waiting_since": None,
        "error_code": error and error.code,
        "error_message": error and error.message,
        "error_retryable": error and error.retryable,
        **totals.columns(),
    }


def recorded_totals(sql: Connection, run_id: UUID) -> Totals:
    """What the event log says the run has used."""
    payload = sql.scalar(
        select(run_events.c.payload)
        .where(run_events.c.run_id == run_id, run_events.c.type == events.RunCost.type)
        .order_by(run_events.c.seq.desc())
        .limit(1)
    )
    if payload is None:
        return Totals()
    data = eventlog.data_of(payload)
    return Totals(usage=Usage(**data["usage"]), cost_usd=Decimal(str(data["cost_usd"])))


def keep_message(
    sql: Connection, run_id: UUID, message: tuple[UUID, str], *, partial: bool
) -> None:
    """Give the thread the run's answer, (id, content), at the run's place."""
    place = select(
        literal(message[0], Uuid),
        runs.c.org_id,
        runs.c.thread_id,
        runs.c.id,
        runs.c.position,
        literal("assistant"),
        literal(events.clean(message[1])),
        literal(partial),
    ).where(runs.c.id == run_id)
    columns = ["id", "org_id", "thread_id", "run_id", "position", "role", "content", "partial"]
    sql.execute(insert(messages).from_select(columns, place))
