"""Usage of a model call that was in flight when its worker was lost.

A worker that makes the call again estimates it by the request itself. Elsewhere neither the tools
of the run nor its provider are at hand: its prompt, the conversation and the streamed text are
measured where they lie, without the tool calls of earlier runs.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, Select, bindparam, func, select, true

from arkloop.shared.billing import budget_limits
from arkloop.shared.catalog import model_routes, model_settings
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.model_routes import Route, Routes
from arkloop.shared.catalog.personas import DEFAULT_PERSONA, Persona
from arkloop.shared.config import InvalidSettings
from arkloop.shared.errors import PersonaNotFound
from arkloop.shared.events import event_log, types
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import RouteCost
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import overrides
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.billing import reservations
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.threads import thread_contexts

log = logging.getLogger(__name__)

#: About as providers estimate a call: other alphabets have more bytes than characters, and events
#: have some hundred around what is sent of them.
BYTES_PER_TOKEN = 4
#: What a finished turn adds to the next request.
_RESENT = (types.MessageCompleted.type, types.ToolCallRequested.type, types.ToolResult.type)

_OF_RUN = run_events.c.run_id == runs.c.id
_SETTLED = (
    select(func.coalesce(func.max(run_events.c.seq), 0))
    .where(
        _OF_RUN,
        run_events.c.type.in_(
            (types.MessageCompleted.type, types.MessageReset.type, types.RunCost.type)
        ),
    )
    .correlate(runs)
    .scalar_subquery()
)
#: Runs that no worker holds, which have streamed something since the last turn or bill.
_MAY_HAVE_LOST_A_CALL = select(*runs.c).where(
    runs.c.id.in_(bindparam("run_ids", expanding=True)),
    runs.c.state != RunState.EXECUTING,
    runs.c.ended_at.is_(None),
    runs.c.fence > 0,
    runs.c.agent.is_(None),
    # LIMIT: one look into an index for each. EXISTS may read all events into a hash.
    select(true())
    .where(_OF_RUN, run_events.c.seq > _SETTLED, run_events.c.type.in_(types.STREAMED_TYPES))
    .limit(1)
    .correlate(runs)
    .scalar_subquery()
    .is_not(None),
)


@dataclass(frozen=True, slots=True)
class Known:
    """The part of the catalog that a run's last call was made with, under this fence."""

    fence: int
    persona: Persona
    route_id: str
    model: str
    route: Route | None  # None: it is gone, or was not asked for


def look_up(tx: Transaction, run_ids: Sequence[UUID]) -> dict[UUID, Known]:
    """Read what the catalog has on those of the runs that may have lost a call, by their ids.

    For a transaction that is about to end some of them: called before it locks anything, since
    this takes several statements, and others wait for the locks.
    """
    found = tx.sql.execute(_MAY_HAVE_LOST_A_CALL, {"run_ids": run_ids}).mappings()
    return {run["id"]: _known(tx.connections, tx.sql, run) for run in found.all()}


def _known(
    connections: Connections, sql: Connection, run: RowMapping, *, with_route: bool = True
) -> Known:
    catalog = Catalog(connections, _server_routes(connections))
    persona = _persona(catalog, sql, run)
    route_id, model = _in_use(sql, run)
    route = catalog.route(run["org_id"], route_id, sql=sql) if with_route else None
    return Known(run["fence"], persona, route_id, model, route)


def count(
    connections: Connections,
    sql: Connection,
    run_id: UUID,
    totals: Totals,
    streamed: Sequence[StoredEvent],
    call: tuple[Route, Usage] | None = None,
    known: Known | None = None,
) -> Totals:
    """Add to the event log's `totals` the call whose `streamed` events no turn has finished.

    `call` is the route and the estimate of a worker that can rebuild the request. `known` is what
    `look_up` has found of the run; without it the catalog is read here. The events count as billed
    if a `run.cost` follows them: a stopping worker reports what it interrupts. A call without any
    output is free. No call costs more than was reserved for it.
    """
    if not streamed:
        return totals
    run = sql.execute(select(*runs.c).where(runs.c.id == run_id)).mappings().one()
    is_after = run_events.c.seq > streamed[0].seq
    if sql.scalar(_last(run, types.RunCost.type).where(is_after)) is not None:
        return totals
    if known is None or known.fence != run["fence"]:
        known = _known(connections, sql, run, with_route=call is None)
    persona = known.persona
    if persona.agent is not None:
        return totals  # it reports its calls itself
    route, usage = call or (known.route, _estimate(sql, run, persona, streamed))
    if route is None:
        log.warning(
            "route %s of run %s no longer exists: its lost call is not billed",
            *(known.route_id, run["id"]),
            extra={"run_id": str(run["id"]), "org_id": str(run["org_id"])},
        )
        return totals.plus(RouteCost(known.route_id, known.model, usage, Decimal(0)))
    if call is None:
        usage = replace(usage, speed=_ordered_speed(sql, run, route, persona))
    most = _reserved(sql, run, persona, totals)
    lost = _at_most(route, _within(route, persona, usage), most)
    return totals.plus(lost)


def _in_use(sql: Connection, run: RowMapping) -> tuple[str, str]:
    """Return the route that made the call and its model: those that the run fell back to, if any.

    Its row names the first.
    """
    payload = sql.scalar(_last(run, types.RunFallback.type))
    if payload is None:
        return run["route_id"], run["model"]
    fallback = event_log.data_of(payload)
    return fallback["to_route_id"], fallback["model"]


def _last(run: RowMapping, type_: str) -> Select[Any]:
    return (
        select(run_events.c.payload)
        .where(run_events.c.run_id == run["id"], run_events.c.type == type_)
        .order_by(run_events.c.seq.desc())
        .limit(1)
    )


def _persona(catalog: Catalog, sql: Connection, run: RowMapping) -> Persona:
    try:
        persona = catalog.persona(run["org_id"], run["persona_id"], sql=sql)
        return overrides.apply(persona, run["options"])
    except PersonaNotFound:
        # A worker of another release had it.
        return Persona(key=DEFAULT_PERSONA, version="")


def _estimate(
    sql: Connection, run: RowMapping, persona: Persona, streamed: Sequence[StoredEvent]
) -> Usage:
    sent = len(persona.system_prompt.encode()) + _bytes_sent(sql, run)
    said = len(event_log.output_of(streamed))
    return Usage(
        input_tokens=-(-sent // BYTES_PER_TOKEN),
        output_tokens=-(-said // BYTES_PER_TOKEN),
        source="estimated",
    )


def _bytes_sent(sql: Connection, run: RowMapping) -> int:
    """Sum the bytes of the thread up to the run, and of its own turns, without unpacking them.

    What comes before the truncation point of the thread was not sent; the last message always is.
    """
    points = thread_contexts.load(sql, run["thread_id"]).values()
    upto = max((point.upto for point in points), default=(0, 0))
    in_sight = (
        messages.c.thread_id == run["thread_id"],
        messages.c.position < run["position"],
        messages.c.superseded_at.is_(None),
    )
    last = select(func.max(messages.c.position)).where(*in_sight).scalar_subquery()
    before = select(func.coalesce(func.sum(func.octet_length(messages.c.content)), 0)).where(
        *in_sight, messages.c.position >= func.least(last, upto[0])
    )
    own = select(func.coalesce(func.sum(func.octet_length(run_events.c.payload)), 0)).where(
        run_events.c.run_id == run["id"],
        run_events.c.type.in_(_RESENT),
        run_events.c.seq > (upto[1] if upto[0] == run["position"] else 0),
    )
    return int(sql.scalar(select(before.scalar_subquery() + own.scalar_subquery())) or 0)


def _within(route: Route, persona: Persona, usage: Usage) -> Usage:
    """Limit the usage to what the route and the persona allow."""
    longest = persona.max_output_tokens or route.max_output_tokens
    return replace(
        usage,
        input_tokens=min(usage.input_tokens, route.context_tokens or usage.input_tokens),
        output_tokens=min(usage.output_tokens, longest or usage.output_tokens),
    )


def _ordered_speed(sql: Connection, run: RowMapping, route: Route, persona: Persona) -> str:
    """Return the speed that the call ordered: none that the route's server has refused before."""
    # A persona orders nothing on a route of the server: its `extra_body` is not sent there.
    of_persona = persona.model_settings if route.is_of_org else {}
    settings = model_settings.effective(route.model_settings, of_persona)
    if not model_settings.ordered_speed(settings):
        return ""  # without reading the run's events
    is_refusal = run_events.c.type == types.RunSettingsDropped.type
    payloads = sql.scalars(
        select(run_events.c.payload).where(run_events.c.run_id == run["id"], is_refusal)
    )
    refusals = [data for data in map(event_log.data_of, payloads) if data["route_id"] == route.id]
    dropped = {name for data in refusals for name in data["settings"]}
    return model_settings.ordered_speed(model_settings.without(settings, dropped))


def _reserved(sql: Connection, run: RowMapping, persona: Persona, totals: Totals) -> Decimal | None:
    """Return the most that the call could cost when it was made; None if nothing limited it."""
    own = budget_limits.find(
        sql, run["org_id"], run["api_key_id"], persona, run["end_user_id"]
    ).max_cost_usd
    held = sql.scalar(select(reservations.c.held_usd).where(reservations.c.run_id == run["id"]))
    limits = [limit - totals.cost_usd for limit in (own, held) if limit is not None]
    return max(min(limits), Decimal(0)) if limits else None


def _at_most(route: Route, usage: Usage, most: Decimal | None) -> RouteCost:
    """Reduce the call's usage if it would cost more than `most`."""
    cost = route.cost(usage)
    if most is not None and cost > most:
        usage = replace(
            usage,
            input_tokens=int(usage.input_tokens * most / cost),
            output_tokens=int(usage.output_tokens * most / cost),
        )
        cost = min(route.cost(usage), most)
    return RouteCost(route.id, route.model, usage, cost)


def _server_routes(connections: Connections) -> Routes:
    try:
        return model_routes.load(connections.settings)
    except InvalidSettings as error:
        # The file was changed since this process began: a run must end all the same.
        log.error("cannot read the server's routes: %s", error)
        return {}
