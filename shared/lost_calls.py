"""What a model call has used in which the worker of a run was lost, where nobody goes on.

A worker that goes on counts it by the request itself. Here the run ends, and neither its tools nor
its provider are at hand: its prompt, the conversation and the streamed text are measured where
they lie.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Column, Connection, Function, RowMapping, Select, func, select

from shared import eventlog, events, model_routes
from shared.catalog import Catalog
from shared.config import InvalidSettings
from shared.connections import Transaction
from shared.errors import PersonaNotFound
from shared.events import RouteCost, StoredEvent, Usage
from shared.model_routes import Route, Routes
from shared.tables import messages, run_events
from shared.transitions import Totals

log = logging.getLogger(__name__)

#: As providers estimate a call, by its characters; only other alphabets have more bytes than those.
BYTES_PER_TOKEN = 4
#: What a finished turn adds to the next request.
_RESENT = (events.MessageCompleted.type, events.ToolCallRequested.type, events.ToolResult.type)


def count(
    tx: Transaction, run: RowMapping, totals: Totals, streamed: Sequence[StoredEvent]
) -> Totals:
    """`totals` of the event log, with the call whose `streamed` events no turn has finished.

    They are counted already where a `run.cost` stands after them: a worker that stops tells what it
    breaks off. A call that had not said anything is free.
    """
    if not streamed or _told_cost_after(tx.sql, run, streamed[0].seq):
        return totals
    catalog = Catalog(tx.connections, _server_routes(tx))
    route_id = _fallback(tx.sql, run) or run["route_id"]
    route = catalog.route(run["org_id"], route_id, sql=tx.sql)
    try:
        prompt = catalog.persona(run["org_id"], run["persona_id"], sql=tx.sql).system_prompt
    except PersonaNotFound:
        prompt = ""  # a worker of a later release had it
    sent = len(prompt.encode()) + _bytes_sent(tx.sql, run)
    said = len(eventlog.text_of(streamed, with_reasoning=True))
    usage = _within(
        route,
        Usage(
            input_tokens=-(-sent // BYTES_PER_TOKEN),
            output_tokens=-(-said // BYTES_PER_TOKEN),
            source="estimated",
        ),
    )
    if route is None:
        log.warning("the route %s of run %s is gone: its lost call is free", route_id, run["id"])
        return totals.plus(RouteCost(route_id, run["model"], usage, Decimal(0)))
    return totals.plus(RouteCost(route.id, route.model, usage, route.cost(usage)))


def _told_cost_after(sql: Connection, run: RowMapping, seq: int) -> bool:
    return sql.scalar(_last(run, events.RunCost.type).where(run_events.c.seq > seq)) is not None


def _fallback(sql: Connection, run: RowMapping) -> str | None:
    """The route that the run has fallen back to, if it has."""
    payload = sql.scalar(_last(run, events.RunFallback.type))
    return None if payload is None else str(eventlog.data_of(payload)["to_route_id"])


def _last(run: RowMapping, type_: str) -> Select[Any]:
    return (
        select(run_events.c.payload)
        .where(run_events.c.run_id == run["id"], run_events.c.type == type_)
        .order_by(run_events.c.seq.desc())
        .limit(1)
    )


def _bytes_sent(sql: Connection, run: RowMapping) -> int:
    """Of the thread up to the run, and of its own turns; Postgres need not unpack them for it."""
    before = select(_size(messages.c.content)).where(
        messages.c.thread_id == run["thread_id"],
        messages.c.position < run["position"],
        messages.c.superseded_at.is_(None),
    )
    own = select(_size(run_events.c.payload)).where(
        run_events.c.run_id == run["id"], run_events.c.type.in_(_RESENT)
    )
    return int(sql.scalar(select(before.scalar_subquery() + own.scalar_subquery())) or 0)


def _size(column: Column[Any]) -> Function[Any]:
    return func.coalesce(func.sum(func.octet_length(column)), 0)


def _within(route: Route | None, usage: Usage) -> Usage:
    """No more than the route lets through."""
    if route is None:
        return usage
    return replace(
        usage,
        input_tokens=min(usage.input_tokens, route.context_tokens or usage.input_tokens),
        output_tokens=min(usage.output_tokens, route.max_output_tokens or usage.output_tokens),
    )


def _server_routes(tx: Transaction) -> Routes:
    try:
        return model_routes.load(tx.connections.settings)
    except InvalidSettings as error:
        # The file was changed since this process began: a run must end all the same.
        log.error("the routes of the server cannot be read: %s", error)
        return {}
