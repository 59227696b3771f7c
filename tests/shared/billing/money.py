"""An org's money in tests: its limits and balance, and its runs as their workers spend them."""

from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select, text, update

from arkloop.shared.billing import budget_limits, budgets, credits
from arkloop.shared.billing.budget_limits import Limits
from arkloop.shared.catalog import personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.events.types import RouteCost, RunCompleted, RunCost
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import endings
from arkloop.shared.runs.endings import Ending, Outcome
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.tables.billing import ledger_entries, reservations, run_usage, spending
from tests.stored_runs import StoredRuns, numbered

FREE = personas.builtin()["assistant@1"]


SERVERS = Route(id="scripted", provider="scripted", model="scripted-1")


class Money:
    """An org's budgets and balance, and its runs as their workers spend them."""

    def __init__(self, stored: StoredRuns) -> None:
        self.stored = stored
        self.org_id = stored.actor.org_id
        self.connections = stored.connections

    # ---- setting ----

    def limit(self, month: str | None = None, run: str | None = None, scope: str = "org") -> None:
        with self.connections.transaction() as tx:
            budget_limits.set_(
                tx,
                self.org_id,
                scope,
                max_cost_usd=None if run is None else Decimal(run),
                max_cost_usd_per_month=None if month is None else Decimal(month),
            )

    def grant(self, amount: int) -> None:
        with self.connections.transaction() as tx:
            credits.grant(tx, self.org_id, amount)

    # ---- what a worker does ----

    def limits(self, claim: Claim, persona: Persona = FREE) -> Limits:
        with self.connections.reading() as sql:
            return budgets.limits(sql, claim, persona)

    def reserve(
        self,
        claim: Claim,
        worst: str,
        so_far: str = "0",
        persona: Persona = FREE,
        *,
        own: str = "0",
        on_own_route: bool = False,
        keep: str = "0",
    ) -> None:
        limits = self.limits(claim, persona)
        with self.connections.transaction() as tx:
            budgets.reserve(
                tx,
                claim,
                limits,
                Decimal(so_far),
                Decimal(worst),
                own_usd=Decimal(own),
                on_own_route=on_own_route,
                keep_usd=Decimal(keep),
            )

    def settle(
        self,
        claim: Claim,
        so_far: str,
        own: str = "0",
        keep: str = "0",
        *,
        keep_is_own: bool = False,
    ) -> None:
        with self.connections.transaction() as tx:
            budgets.settle(
                *(tx, claim, Decimal(so_far)),
                own_usd=Decimal(own),
                keep_usd=Decimal(keep),
                keep_is_own=keep_is_own,
            )

    def spend(self, claim: Claim, cost: str, own: str = "0") -> None:
        """End the run, which has cost so much, and `own` more on a model of the org's."""
        assert Outcome.ENDED == self.end(claim, cost, own)

    def end(
        self, claim: Claim, cost: str, own: str = "0", *, has_reservation: bool = True
    ) -> Outcome:
        used = totals(cost)
        if own != "0":
            used = used.plus(totals(own, str(new_id())).routes[0])
        last = RunCompleted(None, used.usage, used.cost_usd, "stop")
        ending = Ending(
            claim=claim,
            state=RunState.COMPLETED,
            stored=numbered(self.stored.last_seq(claim.run_id), last),
            totals=used,
            has_reservation=has_reservation,
        )
        with self.connections.transaction() as tx:
            return (
                endings.end_with_reservation(tx, ending)
                if has_reservation
                else endings.end(tx, [ending])[0]
            )

    def end_run_of(self, end_user_id: str, cost: str) -> None:
        """End a run of an end user, with a reservation where there is a limit."""
        run_id = self.stored.create(end_user_id=end_user_id)
        claim = self.stored.held(run_id)
        is_limited = self.limits(claim).needs_reservation
        if is_limited:
            self.reserve(claim, cost)
        assert Outcome.ENDED == self.end(claim, cost, has_reservation=is_limited)

    def crash(self, claim: Claim, cost: str) -> None:
        """Lose the worker for good after it has written what it has used."""
        used = totals(cost)
        self.stored.write(claim, RunCost(used.usage, used.cost_usd, used.routes))
        self.stored.set(claim.run_id, state="waiting", pending_input={"request_id": str(new_id())})

    def a_month_passes(self) -> None:
        """Move all that has happened to a month ago."""
        with self.connections.transaction() as tx:
            for table in ("run_usage", "holds", "spending"):
                tx.sql.execute(
                    text(
                        f"UPDATE {table} SET month = month - interval '1 month' WHERE org_id = :org"
                    ),
                    {"org": self.org_id},
                )
            tx.sql.execute(
                update(run_usage)
                .where(run_usage.c.org_id == self.org_id)
                .values(ended_at=run_usage.c.ended_at - text("interval '1 month'"))
            )

    # ---- looking ----

    def month(self, scope: str = "org", ago: int = 0) -> tuple[str, str]:
        """Return (spent, held) in USD, as the table has them."""
        with self.connections.reading() as sql:
            row = sql.execute(
                select(spending.c.spent_usd, spending.c.held_usd).where(
                    spending.c.org_id == self.org_id,
                    spending.c.scope == scope,
                    spending.c.month
                    == text(
                        "date_trunc('month', now() AT TIME ZONE 'UTC')::date"
                        f" - interval '{ago} month'"
                    ),
                )
            ).one_or_none()
        return (short(row[0]), short(row[1])) if row else ("", "")

    def balance(self) -> tuple[int | None, int]:
        with self.connections.reading() as sql:
            assert [] == credits.check(sql, self.org_id)
            has = credits.balance(sql, self.org_id)
        return has.balance, has.held

    def reservations(self) -> list[Row[Any]]:
        with self.connections.reading() as sql:
            return list(
                sql.execute(select(reservations).where(reservations.c.org_id == self.org_id))
            )

    def charged(self, run_id: UUID) -> list[tuple[str, str, int]]:
        entry = ledger_entries.c
        with self.connections.reading() as sql:
            rows = sql.execute(
                select(entry.debit_account, entry.credit_account, entry.credits)
                .where(entry.run_id == run_id)
                .order_by(entry.debit_account)
            )
            return [tuple(row) for row in rows]

    def used(self, run_id: UUID) -> list[Row[Any]]:
        with self.connections.reading() as sql:
            return list(sql.execute(select(run_usage).where(run_usage.c.run_id == run_id)))


def totals(cost: str, route_id: str = "scripted") -> Totals:
    usage = Usage(input_tokens=10, output_tokens=5)
    return Totals().plus(RouteCost(route_id, "scripted-1", usage, Decimal(cost)))


def short(amount: Decimal) -> str:
    return f"{amount.normalize():f}"
