"""The costs of model calls that an agent makes itself: reported after, reserved before."""

import logging
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import RowMapping, exists, select

from arkloop.shared.billing import budgets
from arkloop.shared.catalog import reported_costs
from arkloop.shared.catalog.model_routes import OF_AGENT, Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.events.types import RunError
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import held_runs
from arkloop.shared.runs.held_runs import HeldRun
from arkloop.shared.runs.transitions import Totals, recorded_totals
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.billing import reservations

log = logging.getLogger(__name__)

#: The most models of a run that are counted each by itself; a run's usage has a row for each.
MAX_MODELS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCost:
    """A model call of the agent, as it reports it: its own provider bills it."""

    model: str | None
    usage: Usage
    cost_usd: float | None  # None: as the prices of its model say


def usd_of(cost: AgentCost, route: Route | None) -> Decimal | None:
    """Return what the call costs; None if its price is not known."""
    return reported_costs.cost_of(cost.usage, route, model=cost.model, given_usd=cost.cost_usd)


def check_unpriced(run: HeldRun, persona: Persona, model: str) -> RunError | None:
    """Return the error of a run with a call of a model whose price is not known: under a budget
    each call must have one.
    """
    # Not where it reserves for another reason: credits never pay these calls, and a sub-run has a
    # reservation also where nothing limits it.
    if not budgets.limits(run.tx.sql, run.claim(), persona).has_budget:
        return None
    message = (
        f"The agent reported a call of {model!r}, whose price is not known; it must report the cost"
        " itself under a budget."
    )
    return RunError("budget.exhausted", message, False)


def counted_as(totals: Totals, agent: str, model: str) -> tuple[str, str]:
    """Return the route id and the model as which a call of this model is counted.

    The first model has the agent's route id; each other one has its own, since a run's usage has
    one row for each id, with one model.
    """
    first = f"{OF_AGENT}{agent}"
    models = {part.route_id: part.model for part in totals.routes}
    other = f"{first}/{model}"
    if models.get(first, model) == model:
        return first, model
    is_counted = other in models or len(models) < MAX_MODELS
    return (other, model) if is_counted else (first, models[first])


def model_counted(totals: Totals, route_id: str, model: str) -> str:
    """Return the model as which a call of this model is counted, where all are of one route.

    It is the route's first one once the run has as many as are counted each by itself.
    """
    models = [part.model for part in totals.routes if part.route_id == route_id]
    return model if model in models or len(models) < MAX_MODELS else models[0]


def hold(run: HeldRun, persona: Persona, most_usd: Decimal = Decimal(0)) -> budgets.Refused | None:
    """Reserve the run's cost so far, and what its next model call may cost at most.

    Returns why that does not fit; what was reserved before stays then.
    """
    claim, totals = run.claim(), recorded_totals(run.tx.sql, run.id)
    limits = budgets.limits(run.tx.sql, claim, persona)
    if not limits.has_budget and not limits.needs_reservation:
        return None
    try:
        with run.tx.sql.begin_nested():
            budgets.reserve(
                *(run.tx, claim, limits, totals.cost_usd, most_usd),
                own_usd=totals.own_usd,
                on_own_route=True,
            )
    except budgets.Refused as refused:
        return refused
    return None


def exhausted(run: HeldRun, persona: Persona, refused: budgets.Refused) -> RunError:
    """Return the error of a run that has exceeded a budget; its costs count all the same."""
    log.warning("a cost of an agent was refused: %s", refused.logged())
    give_back(run, persona)
    budgets.note_refusal(run.tx, run.row["org_id"], refused)
    return RunError("budget.exhausted", refused.shown(run.claim()), refused.others_reserved)


def give_back(run: HeldRun, persona: Persona) -> None:
    """Reduce the run's reservation to what it has cost so far, whatever that exceeds."""
    claim, totals = run.claim(), recorded_totals(run.tx.sql, run.id)
    limits = budgets.limits(run.tx.sql, claim, persona)
    if limits.needs_reservation:
        budgets.settle(run.tx, claim, totals.cost_usd, limits, own_usd=totals.own_usd)


def give_back_lost(tx: Transaction, row: RowMapping) -> None:
    """Reduce the reservation of a run that an agent worker has lost to what it has cost so far.

    A call that was in progress reports nothing any more, and the wait for another worker may have
    no end. Of a run of the service's own workers nothing changes: what their calls have used is
    estimated at the next claim. The run's row and its reservation are locked.
    """
    has_one = exists().where(reservations.c.run_id == row["id"])
    if row["agent"] is None or not tx.sql.scalar(select(has_one)):
        return
    totals = recorded_totals(tx.sql, row["id"])
    claim = held_runs.of_row(tx, row).claim()
    budgets.settle(tx, claim, totals.cost_usd, own_usd=totals.own_usd)
