"""The org of one trial: its limits, its balance, and runs that workers hold already."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from uuid import UUID

from sqlalchemy import insert, text, update

from arkloop.shared.accounts import accounts
from arkloop.shared.billing import budget_limits, credits
from arkloop.shared.billing.spending import ORG, api_key_scope, persona_scope, run_scope
from arkloop.shared.catalog import personas
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.ids import new_id, new_trace_id
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.billing import reservations
from arkloop.shared.storage.tables.runs import runs, sub_runs
from arkloop.shared.storage.tables.threads import threads
from arkloop.shared.times import now

CENT = Decimal("0.01")
#: One whose prices are known: 1 and 2 USD per million tokens.
ROUTE_ID = "scripted"


@dataclass(slots=True)
class SpendingRun:
    """A run as its worker knows it."""

    claim: Claim
    persona: Persona
    recorded: Totals = field(default_factory=Totals)  # what the event log says
    last_seq: int = 0
    broken: BaseException | None = None
    is_of_agent: bool = False  # an agent worker holds it
    is_over: bool = False  # as that has learned

    @property
    def id(self) -> UUID:
        return self.claim.run_id


@dataclass(frozen=True, slots=True)
class Org:
    """`limits` are USD a month, by scope; `granted` is None where it does not pay in advance."""

    connections: Connections
    id: UUID
    limits: Mapping[str, Decimal]
    granted: int | None
    runs: Sequence[SpendingRun]

    @classmethod
    def make(cls, connections: Connections, spenders: int, dice: random.Random) -> "Org":
        """Make an org with limits that are too low for all, at least one of them."""
        keys = [new_id(), new_id()]
        plain = personas.builtin()["assistant@1"]
        strict = replace(plain, key="strict", max_cost_usd_per_month=_limit(dice, spenders // 2))
        limits = {persona_scope("strict"): strict.max_cost_usd_per_month or Decimal(0)}
        if is_limited := dice.random() < 0.7:
            limits[ORG] = _limit(dice, spenders)
        if dice.random() < 0.5:
            limits[api_key_scope(keys[0])] = _limit(dice, spenders // 3)
        granted = None
        if not is_limited or dice.random() < 0.5:
            granted = int(_limit(dice, spenders) * credits.CREDITS_PER_USD) + 1
        with connections.transaction() as tx:
            org_id = accounts.create_org(tx, "trial")
            user_id = accounts.create_user(
                tx,
                org_id=org_id,
                role="owner",
                login=f"u{org_id.hex}",
                email=f"{org_id.hex}@example.com",
                password_hash="-",
            )
            for scope, limit in limits.items():
                if scope != persona_scope("strict"):
                    budget_limits.set_(
                        tx, org_id, scope, max_cost_usd=None, max_cost_usd_per_month=limit
                    )
            if granted is not None:
                credits.grant(tx, org_id, granted)
            held = [
                SpendingRun(
                    claim=_claim(org_id, dice.choice([None, *keys])),
                    persona=dice.choice([plain, plain, strict]),
                )
                for _ in range(spenders)
            ]
            _insert(tx, user_id, held)
        return cls(connections, org_id, limits, granted, held)

    @classmethod
    def make_tree(cls, connections: Connections, spenders: int, dice: random.Random) -> "Org":
        """Make an org whose first run has all others as its sub-runs, under a limit of its own."""
        org = cls.make(connections, spenders, dice)
        root, *below = org.runs
        cap = _limit(dice, spenders // 2)
        root.persona = replace(
            personas.builtin()["assistant@1"],
            key="root",
            delegates=("assistant",),
            max_cost_usd=cap,
        )
        with connections.transaction() as tx:
            of_root = update(runs).where(runs.c.id == root.id)
            tx.sql.execute(of_root.values(persona_id="root@1"))
            for number, run in enumerate(below):
                run.claim = replace(run.claim, parent_run_id=root.id, api_key_id=None)
                tx.sql.execute(
                    update(runs)
                    .where(runs.c.id == run.id)
                    .values(parent_run_id=root.id, api_key_id=None)
                )
                tx.sql.execute(
                    insert(sub_runs).values(
                        run_id=run.id,
                        parent_run_id=root.id,
                        parent_call_id=str(number),
                        root_run_id=root.id,
                        depth=1,
                        levels_left=0,
                    )
                )
                tx.sql.execute(
                    insert(reservations).values(
                        run_id=run.id,
                        org_id=org.id,
                        month=run.claim.claimed_at.date().replace(day=1),
                        scopes=[],
                        cost_usd=0,
                        held_usd=0,
                        caps={str(root.id): str(cap)},
                    )
                )
        return replace(org, limits={**org.limits, run_scope(root.id): cap})

    def a_month_passes(self) -> None:
        """Move all that has happened to a month ago; no transaction is open."""
        with self.connections.transaction() as tx:
            for table, kept in (
                ("run_usage", ""),
                ("holds", ""),
                ("spending", " AND NOT starts_with(scope, 'run:')"),
            ):
                tx.sql.execute(
                    text(
                        f"UPDATE {table} SET month = month - interval '1 month'"
                        f" WHERE org_id = :org{kept}"
                    ),
                    {"org": self.id},
                )


def _limit(dice: random.Random, spenders: int) -> Decimal:
    """Choose about half of what `spenders` would spend, or much less."""
    return CENT * dice.randint(1, max(2, spenders)) + Decimal(dice.randint(0, 99)) / 10**8


def _claim(org_id: UUID, api_key_id: UUID | None) -> Claim:
    moment = now()
    return Claim(
        run_id=new_id(),
        org_id=org_id,
        thread_id=new_id(),
        persona_id="assistant@1",
        route_id=ROUTE_ID,
        model="model",
        trace_id=new_trace_id(),
        position=1,
        fence=1,
        attempt=1,
        last_seq=0,
        queued_at=moment,
        claimed_at=moment,
        used_seconds=0,
        is_suspect=False,
        api_key_id=api_key_id,
        is_limited=True,
    )


def _insert(tx: Transaction, user_id: UUID, held: Sequence[SpendingRun]) -> None:
    """Insert their threads and rows, as if workers had claimed them."""
    tx.sql.execute(
        insert(threads),
        [
            {
                "id": run.claim.thread_id,
                "org_id": run.claim.org_id,
                "created_by_user_id": user_id,
            }
            for run in held
        ],
    )
    tx.sql.execute(
        insert(runs),
        [
            {
                "id": run.id,
                "org_id": run.claim.org_id,
                "thread_id": run.claim.thread_id,
                "created_by_user_id": user_id,
                "api_key_id": run.claim.api_key_id,
                "trace_id": run.claim.trace_id,
                "persona_id": f"{run.persona.key}@1",
                "route_id": ROUTE_ID,
                "model": "model",
                "position": 1,
                "state": "executing",
                "fence": 1,
                "attempt": 1,
                "queued_at": run.claim.queued_at,
            }
            for run in held
        ],
    )
