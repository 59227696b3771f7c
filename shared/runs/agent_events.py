"""The events of an agent worker's write, stored up to the limit that one of them exceeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import exists, select

from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events import types
from arkloop.shared.events.types import Event, RouteCost, RunError
from arkloop.shared.runs import agent_costs, agent_steps
from arkloop.shared.runs.agent_claims import persona_of
from arkloop.shared.runs.agent_costs import AgentCost
from arkloop.shared.runs.agent_steps import Events
from arkloop.shared.runs.held_runs import HeldRun
from arkloop.shared.runs.transitions import Totals, recorded_totals
from arkloop.shared.storage.tables.events import run_events

#: Events that belong to a model turn, which must have begun before.
_OF_TURN = (types.ToolCallRequested, types.ToolResult)
_WITHOUT_TURN = "a call or result needs a `message.completed` before it, whose turn it is of"


@dataclass(frozen=True, slots=True)
class Stored:
    """The error by which the run has to end, if there is one, and the text of the turn that was
    left out for it. `is_unpriced`: a call under a budget has no known price.
    """

    error: RunError | None = None
    text: str = ""
    is_unpriced: bool = False


class _Costs(NamedTuple):
    """The costs among some events: whether there are any, and a model without a known price."""

    has_any: bool = False
    unpriced: str | None = None


def store(run: HeldRun, events: Events, catalog: Catalog, *, delegates: bool) -> Stored:
    """Store the events of a write, with `delegates` one that has calls after them.

    Of the turn that a limit does not allow, costs and results of other calls alone are stored.

    Raises:
        InvalidRequest: calls and results without a turn.
    """
    beyond = Stored()
    if delegates or any(isinstance(event, types.ToolCallRequested) for event in events):
        persona = _persona_of(run, catalog)
        found = agent_steps.check(run, persona, events, delegates=delegates)
        if found is not None:
            events, beyond = found.events, Stored(found.error, found.text)
    parts = agent_steps.parts(events, delegates=delegates)
    stored = 0
    for part in parts:
        stopped = _store(run, part, catalog)
        stored += len(part)
        if stopped.error is not None:
            left = events[stored:]
            behind = agent_steps.behind_cost(run, left, stopped.error, delegates=delegates)
            _write(run, left if behind is None else behind.events, catalog)
            return replace(stopped, text=beyond.text if behind is None else behind.text)
    return beyond


def check_turn(run: HeldRun) -> None:
    """Check that the run has a turn. Raises: InvalidRequest."""
    turn = (run_events.c.run_id == run.id) & (run_events.c.type == types.MessageCompleted.type)
    if not run.tx.sql.scalar(select(exists().where(turn))):
        raise InvalidRequest(events=[_WITHOUT_TURN])


def _store(run: HeldRun, events: Events, catalog: Catalog) -> Stored:
    """Store events, and reserve what the run has cost with them."""
    costs = _write(run, events, catalog)
    if not costs.has_any:
        return Stored()
    persona = _persona_of(run, catalog)
    unpriced: RunError | None = None
    if costs.unpriced is not None:
        unpriced = agent_costs.check_unpriced(run, persona, costs.unpriced)
    refused = agent_costs.hold(run, persona)
    if refused is not None and refused.others_reserved:  # they may use less
        agent_costs.give_back(run, persona)
    elif refused is not None and unpriced is None:
        return Stored(agent_costs.exhausted(run, persona, refused))
    return Stored(unpriced, is_unpriced=unpriced is not None)


def _write(run: HeldRun, events: Sequence[Event | AgentCost], catalog: Catalog) -> _Costs:
    """Write the events; a model call without a known price costs nothing."""
    if not events:
        return _Costs()
    first = next((e for e in events if isinstance(e, (*_OF_TURN, types.MessageCompleted))), None)
    if isinstance(first, _OF_TURN):
        check_turn(run)
    has_costs = any(isinstance(event, AgentCost) for event in events)
    totals = recorded_totals(run.tx.sql, run.id) if has_costs else Totals()
    happened: list[Event] = []
    unpriced: str | None = None
    for event in events:
        if isinstance(event, AgentCost):
            model = event.model or run.row["model"]
            route = catalog.route(run.row["org_id"], run.row["route_id"], sql=run.tx.sql)
            usd = agent_costs.usd_of(event, route)
            unpriced = model if usd is None else unpriced
            counted_as = agent_costs.counted_as(totals, run.row["agent"], model)
            totals = totals.plus(RouteCost(*counted_as, event.usage, usd or Decimal(0)))
            event = types.RunCost(totals.usage, totals.cost_usd, totals.routes)
        happened.append(event)
    run.store(*happened)
    return _Costs(has_costs, unpriced)


def _persona_of(run: HeldRun, catalog: Catalog) -> Persona:
    return persona_of(catalog, run.row, run.tx.sql)
