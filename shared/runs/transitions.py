"""The columns that every change of a run's state writes."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, select

from arkloop.shared.catalog import model_routes
from arkloop.shared.events import event_log, types
from arkloop.shared.events.types import RouteCost
from arkloop.shared.events.usage import TOKEN_FIELDS, Usage
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.usd import MAX_COST_USD

#: Owners lost within one step, after which a run is given up.
MAX_CRASHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The finished model turns of a run and its usage so far."""

    steps: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal = Decimal(0)
    routes: tuple[RouteCost, ...] = ()  # the parts of the sum, one for each route and model

    def plus(self, call: RouteCost) -> "Totals":
        """Add one more model call."""
        parts = {(part.route_id, part.model): part for part in self.routes}
        called = call.route_id, call.model
        if earlier := parts.get(called):
            call = replace(
                call, usage=earlier.usage + call.usage, cost_usd=earlier.cost_usd + call.cost_usd
            )
        parts[called] = call
        routes = tuple(parts.values())
        return Totals(
            steps=self.steps,
            usage=sum((part.usage for part in routes), Usage()),
            cost_usd=sum((part.cost_usd for part in routes), Decimal(0)),
            routes=routes,
        )

    def after(self, happened: Iterable[types.Event]) -> "Totals":
        """Add the model turns that these events finish."""
        finished = sum(isinstance(event, types.MessageCompleted) for event in happened)
        return replace(self, steps=self.steps + finished) if finished else self

    @property
    def own_usd(self) -> Decimal:
        """The part of the cost for models of the org itself, which it pays at their provider."""
        own = (part.cost_usd for part in self.routes if model_routes.is_of_org(part.route_id))
        return sum(own, Decimal(0))

    @property
    def usage_rows(self) -> list[tuple[str, RouteCost]]:
        """The parts, each with its own `run_usage.route_id`.

        The model of a route may have changed while the run was active: each one after the first
        has `{route_id}/{model}`, which no route can have.
        """
        rows: dict[str, RouteCost] = {}
        for part in self.routes:
            is_first = part.route_id not in rows
            rows[part.route_id if is_first else f"{part.route_id}/{part.model}"] = part
        return list(rows.items())

    def columns(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            **{name: getattr(self.usage, name) for name in TOKEN_FIELDS},
            "usage_source": self.usage.source,
            "cost_usd": min(self.cost_usd, MAX_COST_USD),
        }


def queued(reason: str) -> dict[str, Any]:
    """Return the columns of a run that is queued again; `reason` is that of `run.resumed`."""
    return {
        "state": RunState.QUEUED,
        "resume_reason": reason,
        "queued_at": func.now(),
    }


def awaiting_runs() -> dict[str, Any]:
    """Return the columns of a run that waits for sub-runs alone."""
    return {
        "state": RunState.SUSPENDED,
        "pending_input": None,
        "input_expires_at": None,
    }


def waiting_is_over() -> dict[str, Any]:
    """Return the columns of a run that no longer waits for a person."""
    return {
        "waiting_ms": runs.c.waiting_ms + milliseconds_since(runs.c.waiting_since),
        "waiting_since": None,
        "input_expires_at": None,
        "pending_input": None,
    }


def milliseconds_since(moment: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the time since a moment; 0 for none, and for one before which the clock was set
    back.
    """
    # GREATEST ignores nulls.
    return func.greatest(func.extract("epoch", func.now() - moment) * 1000, 0)


def recorded_totals(sql: Connection, run_id: UUID) -> Totals:
    """Return the run's steps and usage according to its event log."""
    steps = sql.scalar(
        select(func.count()).where(
            run_events.c.run_id == run_id, run_events.c.type == types.MessageCompleted.type
        )
    )
    row = sql.execute(
        select(run_events.c.payload, runs.c.route_id, runs.c.model)
        .join(runs, runs.c.id == run_events.c.run_id)
        .where(run_events.c.run_id == run_id, run_events.c.type == types.RunCost.type)
        .order_by(run_events.c.seq.desc())
        .limit(1)
    ).one_or_none()
    totals = Totals(steps=steps or 0)
    if row is None:
        return totals
    data = event_log.data_of(row.payload)
    parts = data.get("routes", [])
    if not parts and (data["cost_usd"] or any(data["usage"].get(name) for name in TOKEN_FIELDS)):
        # Releases before this one wrote the sum alone: then there was one route.
        parts = [{**data, "route_id": row.route_id, "model": row.model}]
    for part in parts:
        cost = Decimal(str(part["cost_usd"]))
        # What a later release may count besides is not known here.
        known = {name: part["usage"].get(name, 0) for name in TOKEN_FIELDS}
        usage = Usage(**known, source=part["usage"]["source"])
        call = RouteCost(part["route_id"], part["model"], usage, cost)
        totals = totals.plus(call)
    return totals
