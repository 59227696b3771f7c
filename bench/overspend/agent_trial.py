"""A trial with custom agents: the parent of the tree, and half of its sub-runs, report their costs.

They are runs behind an agent worker, which reserves before a model call and appends what it has
cost. The service ends them where a limit is reached.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

from sqlalchemy import select, update

from arkloop.shared.actors import Actor
from arkloop.shared.catalog import model_routes, published_personas
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.errors import OutdatedFence
from arkloop.shared.events import event_log
from arkloop.shared.events.types import MessageCompleted
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import agent_costs, agent_writes, held_runs
from arkloop.shared.runs.agent_costs import AgentCost
from arkloop.shared.runs.agent_endings import Complete
from arkloop.shared.runs.agent_writes import Hold, Write
from arkloop.shared.runs.held_runs import Written
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.runs import runs
from bench.overspend.org import Org, SpendingRun
from bench.overspend.trial import MAX_CALLS, MAX_TRIES, MAX_WORST_CASE, Trial, may_be_lost

AGENT = "spender"
#: Of the sub-runs; the rest is executed by the built-in loop.
OF_AGENTS = 0.5
MAX_OUTPUT_BYTES = 2**30


def make_org(connections: Connections, spenders: int, dice: random.Random) -> Org:
    """Make the org of a tree, some of whose runs an agent worker has claimed, the first among them.

    Its personas are published, since the service reads the limits of such runs itself.
    """
    org = Org.make_tree(connections, spenders, dice)
    root, *below = org.runs
    chosen = [root, *(run for run in below if dice.random() < OF_AGENTS)]
    with connections.transaction() as tx:
        creator = tx.sql.scalar(select(runs.c.created_by_user_id).where(runs.c.id == root.id))
        assert creator is not None
        actor = Actor(org_id=org.id, user_id=creator, role="owner", permissions=frozenset())
        for persona in {run.persona.key: run.persona for run in org.runs}.values():
            if persona.key != "assistant":
                definition = {
                    "delegates": list(persona.delegates),
                    "max_cost_usd": _usd(persona.max_cost_usd),
                    "max_cost_usd_per_month": _usd(persona.max_cost_usd_per_month),
                }
                published_personas.publish(tx, actor, persona.key, "1", definition)
        tx.sql.execute(
            update(runs).where(runs.c.id.in_([run.id for run in chosen])).values(agent=AGENT)
        )
    for run in chosen:
        run.is_of_agent = True
    return org


class AgentTrial(Trial):
    """A trial whose runs of agents spend by the requests of an agent worker."""

    def __init__(self, connections: Connections, *, spenders: int, seed: int) -> None:
        super().__init__(connections, spenders=spenders, seed=seed, make=make_org)
        self._catalog = Catalog(connections, model_routes.load(connections.settings))

    def _attempt(self, run: SpendingRun, dice: random.Random) -> None:
        if not run.is_of_agent:
            super()._attempt(run, dice)
            return
        for _ in range(dice.randint(1, MAX_CALLS)):
            worst = Decimal(dice.randint(0, MAX_WORST_CASE)) / 10**8
            if not self._holds(run, worst, dice):
                break
            may_be_lost(dice)
            cost = round(worst * dice.choice((0, 1, 1, Decimal(dice.random()))), 8)
            usage = Usage(input_tokens=dice.randint(0, 1000), output_tokens=dice.randint(0, 100))
            call = AgentCost(model="theirs", usage=usage, cost_usd=float(cost))
            self._write(run, dice, MessageCompleted(str(new_id()), "", Usage()), call)
            may_be_lost(dice)
        self._write(run, None, then=Complete(content=""))

    def _holds(self, run: SpendingRun, worst: Decimal, dice: random.Random) -> bool:
        for attempt in range(1, MAX_TRIES + 1):
            hold = Hold(
                run_id=run.id, fence=run.claim.fence, usd=worst, gives_up=attempt == MAX_TRIES
            )
            if run.is_over:
                return False
            reserved = False

            def reserve(tx: Transaction, hold: Hold = hold) -> Written:
                nonlocal reserved
                written, reserved = agent_writes.reserve(
                    tx, run.claim.org_id, AGENT, hold, self._catalog
                )
                return written

            self._request(run, dice, reserve)
            if reserved:
                return True
        return False

    def _write(
        self,
        run: SpendingRun,
        dice: random.Random | None,
        *events: MessageCompleted | AgentCost,
        then: Complete | None = None,
    ) -> None:
        if run.is_over:
            return
        change = Write(
            run_id=run.id, fence=run.claim.fence, seq=run.last_seq + 1, events=list(events)
        )
        self._request(
            run,
            dice,
            lambda tx: agent_writes.write(
                *(tx, run.claim.org_id, AGENT, change, self._catalog, then),
                max_output_bytes=MAX_OUTPUT_BYTES,
            ),
        )

    def _request(
        self,
        run: SpendingRun,
        dice: random.Random | None,
        make: Callable[[Transaction], Written],
    ) -> None:
        """Make a request, whose response may be lost, or its transaction."""
        with self._transaction(dice) as tx:
            written = make(tx)
        run.last_seq = written.next_seq - 1
        run.is_over = RunState(written.state).is_terminal

    def _take_over(self, run: SpendingRun) -> None:
        if not run.is_of_agent:
            super()._take_over(run)
            return
        late, run.claim = run.claim, replace(run.claim, fence=run.claim.fence + 1)
        with self._transaction() as tx:
            row = (
                tx.sql.execute(select(*runs.c).where(runs.c.id == run.id).with_for_update())
                .mappings()
                .one()
            )
            run.is_over = RunState(row["state"]).is_terminal
            if not run.is_over:
                tx.sql.execute(
                    update(runs).where(runs.c.id == run.id).values(fence=run.claim.fence)
                )
                held = held_runs.of_row(tx, {**row, "fence": run.claim.fence})  # type: ignore[arg-type]  # a row as it is now
                agent_costs.give_back(held, run.persona)
            run.last_seq = event_log.last_seq(tx.sql, run.id)
        if run.is_over:
            return
        try:
            with self._transaction() as tx:
                held_runs.lock(tx, run.claim.org_id, AGENT, run.id, late.fence)
        except OutdatedFence:
            return
        raise AssertionError("a worker whose claim was over could write")


def _usd(limit: Decimal | None) -> float | None:
    return None if limit is None else float(limit)
