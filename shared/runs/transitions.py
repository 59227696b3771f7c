"""What every change of a run's state writes, whoever makes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Uuid, func, insert, literal, select, text

from shared.catalog import model_routes
from shared.events import event_log, types
from shared.events.types import TOKEN_FIELDS, RouteCost, Usage
from shared.runs.states import RunState
from shared.storage.arrays import TextArray
from shared.storage.tables.events import run_events
from shared.storage.tables.runs import runs
from shared.storage.tables.threads import messages
from shared.usd import MAX_COST_USD

#: Owners lost within one step, after which a run is given up.
MAX_CRASHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a run has used so far."""

    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal = Decimal(0)
    routes: tuple[RouteCost, ...] = ()  # the parts of the sum, one for each route

    def plus(self, call: RouteCost) -> "Totals":
        """With one more model call."""
        parts = {part.route_id: part for part in self.routes}
        if earlier := parts.get(call.route_id):
            call = replace(
                call, usage=earlier.usage + call.usage, cost_usd=earlier.cost_usd + call.cost_usd
            )
        parts[call.route_id] = call
        routes = tuple(parts.values())
        return Totals(
            usage=sum((part.usage for part in routes), Usage()),
            cost_usd=sum((part.cost_usd for part in routes), Decimal(0)),
            routes=routes,
        )

    @property
    def own_usd(self) -> Decimal:
        """The part of the cost for models of the org itself, which it pays at their provider."""
        own = (part.cost_usd for part in self.routes if model_routes.is_of_org(part.route_id))
        return sum(own, Decimal(0))

    def columns(self) -> dict[str, Any]:
        return {
            **{name: getattr(self.usage, name) for name in TOKEN_FIELDS},
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


def ended(state: RunState, totals: Totals, error: types.RunError | None) -> dict[str, Any]:
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
    row = sql.execute(
        select(run_events.c.payload, runs.c.route_id, runs.c.model)
        .join(runs, runs.c.id == run_events.c.run_id)
        .where(run_events.c.run_id == run_id, run_events.c.type == types.RunCost.type)
        .order_by(run_events.c.seq.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return Totals()
    data = event_log.data_of(row.payload)
    parts = data.get("routes", [])
    if not parts and (data["cost_usd"] or any(data["usage"].get(name) for name in TOKEN_FIELDS)):
        # Releases before this one wrote the sum alone: then there was one route.
        parts = [{**data, "route_id": row.route_id, "model": row.model}]
    totals = Totals()
    for part in parts:
        cost = Decimal(str(part["cost_usd"]))
        # What a later release may count besides is not known here.
        known = {name: part["usage"].get(name, 0) for name in TOKEN_FIELDS}
        usage = Usage(**known, source=part["usage"]["source"])
        call = RouteCost(part["route_id"], part["model"], usage, cost)
        totals = totals.plus(call)
    return totals


_KEEP_USAGE = text(
    """
    INSERT INTO run_usage (run_id, route_id, org_id, user_id, api_key_id, persona_key, model,
        input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
        usage_source, cost_usd, ended_at, month)
    SELECT r.id, u.route_id, r.org_id, r.created_by_user_id, r.api_key_id,
        split_part(r.persona_id, '@', 1), u.model, u.input_tokens, u.output_tokens,
        u.cache_read_tokens, u.cache_write_tokens, u.reasoning_tokens, u.usage_source, u.cost_usd,
        r.ended_at,
        coalesce(
            (SELECT h.month FROM holds h WHERE h.run_id = r.id),
            date_trunc('month', r.ended_at AT TIME ZONE 'UTC')::date
        )
    FROM runs r CROSS JOIN unnest(
        :route_ids ::text[], :models ::text[], :input_tokens ::bigint[], :output_tokens ::bigint[],
        :cache_read_tokens ::bigint[], :cache_write_tokens ::bigint[],
        :reasoning_tokens ::bigint[], :usage_sources ::text[], :costs ::numeric[]
    ) AS u (route_id, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
            reasoning_tokens, usage_source, cost_usd)
    WHERE r.id = :run_id
    """
)


def keep_usage(sql: Connection, run_id: UUID, totals: Totals) -> None:
    """Write down what the run, which has just ended and not let go of its hold, has used."""
    if totals.routes:
        sql.execute(_KEEP_USAGE, {"run_id": run_id, **usage_columns([totals])})


def usage_columns(several: Sequence[Totals]) -> dict[str, Sequence[Any]]:
    """The parts of all of them, one below the other, as columns of `run_usage`."""
    parts = [part for totals in several for part in totals.routes]
    return {
        "route_ids": TextArray(part.route_id for part in parts),
        "models": TextArray(part.model for part in parts),
        **{name: [getattr(part.usage, name) for part in parts] for name in TOKEN_FIELDS},
        "usage_sources": [part.usage.source for part in parts],
        "costs": [min(part.cost_usd, MAX_COST_USD) for part in parts],
    }


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
        literal(types.clean(message[1])),
        literal(partial),
    ).where(runs.c.id == run_id)
    columns = ["id", "org_id", "thread_id", "run_id", "position", "role", "content", "partial"]
    sql.execute(insert(messages).from_select(columns, place))
