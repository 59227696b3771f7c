"""The verdict on a trial: observed while it ran, and counted when it was over."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import Connection, text

from arkloop.shared.billing import credits
from arkloop.shared.storage.connections import Connections
from bench.overspend.org import Org

_LOOK_SECONDS = 0.01

# Each of one moment.
_MONTHS = text(
    """
    SELECT scope, month, spent_usd, held_usd,
        (SELECT coalesce(sum(h.held_usd), 0) FROM holds h
         WHERE h.org_id = s.org_id AND s.scope = ANY(h.scopes)
            AND (h.month = s.month OR starts_with(s.scope, 'run:'))) AS holds_usd,
        (SELECT coalesce(sum(u.cost_usd), 0) FROM run_usage u
         WHERE u.org_id = s.org_id AND (starts_with(s.scope, 'run:') OR u.month = s.month
            AND s.scope IN ('org', 'api_key:' || u.api_key_id, 'persona:' || u.persona_key))
        ) AS ended_usd
    FROM spending s WHERE org_id = :org
    """
)
_BALANCE = text(
    """
    SELECT balance, held,
        (SELECT coalesce(sum(h.held_credits), 0) FROM holds h WHERE h.org_id = b.org_id) AS holds,
        (SELECT coalesce(sum(CASE WHEN credit_account = 'customer' THEN credits
                                  WHEN debit_account = 'customer' THEN -credits ELSE 0 END), 0)
         FROM ledger_entries l WHERE l.org_id = b.org_id) AS entries
    FROM credit_balances b WHERE org_id = :org
    """
)
_RUNS = text(
    """
    SELECT r.id, r.state, r.ended_at, r.cost_usd,
        (SELECT coalesce(sum(u.cost_usd), 0) FROM run_usage u WHERE u.run_id = r.id) AS used_usd,
        ARRAY(SELECT l.debit_account FROM ledger_entries l WHERE l.run_id = r.id) AS accounts,
        (SELECT coalesce(sum(l.credits), 0) FROM ledger_entries l WHERE l.run_id = r.id) AS charged
    FROM runs r WHERE r.org_id = :org
    """
)


@dataclass(slots=True)
class Verdict:
    """`overspent_usd` is the most by which a limit was passed at any moment; faults are words."""

    overspent_usd: Decimal = Decimal(0)
    faults: list[str] = field(default_factory=list)
    looks: int = 0
    runs: int = 0
    spent_usd: Decimal = Decimal(0)
    is_prepaid: bool = False


class Observer:
    """Looks at an org's money from outside."""

    def __init__(self, connections: Connections, org: Org) -> None:
        self.stop = threading.Event()
        self._connections = connections
        self._org = org
        self._verdict = Verdict(runs=len(org.runs), is_prepaid=org.granted is not None)

    def watch(self) -> None:
        """Observe until `stop` is set."""
        while not self.stop.wait(_LOOK_SECONDS):
            with self._connections.reading() as sql:
                self._look(sql)

    def judge(self) -> Verdict:
        """Judge the trial when all runs have ended."""
        verdict = self._verdict
        for run in self._org.runs:
            if run.broken is not None:
                verdict.faults.append(f"{run.id}: {run.broken!r} of {run.broken.__cause__!r}")
        with self._connections.reading() as sql:
            self._look(sql)
            verdict.faults += self._left_over(sql)
            verdict.faults += self._wrong_runs(sql)
        return verdict

    def _look(self, sql: Connection) -> None:
        verdict, org = self._verdict, {"org": self._org.id}
        verdict.looks += 1
        for row in sql.execute(_MONTHS, org):
            limit = self._org.limits.get(row.scope)
            if limit is not None:
                over = row.spent_usd + row.held_usd - limit
                verdict.overspent_usd = max(verdict.overspent_usd, over)
            if row.held_usd != row.holds_usd:
                verdict.faults.append(f"{row.scope}: held {row.held_usd}, holds {row.holds_usd}")
            if row.spent_usd != row.ended_usd:
                verdict.faults.append(f"{row.scope}: spent {row.spent_usd}, {row.ended_usd} ended")
        for row in sql.execute(_BALANCE, org):
            if not 0 <= row.held <= row.balance:
                verdict.faults.append(f"balance {row.balance}, held {row.held}")
            if row.held != row.holds:
                verdict.faults.append(f"credits held {row.held}, holds {row.holds}")
            if row.balance != row.entries:
                verdict.faults.append(f"balance {row.balance}, ledger {row.entries}")

    def _left_over(self, sql: Connection) -> Iterator[str]:
        held = sql.scalar(
            text(
                "SELECT (SELECT count(*) FROM holds WHERE org_id = :org)"
                " + (SELECT count(*) FROM spending WHERE org_id = :org AND held_usd <> 0)"
                " + (SELECT count(*) FROM credit_balances WHERE org_id = :org AND held <> 0)"
            ),
            {"org": self._org.id},
        )
        if held:
            yield f"{held} rows hold something, and no run is left"

    def _wrong_runs(self, sql: Connection) -> Iterator[str]:
        of_agents = {run.id for run in self._org.runs if run.is_of_agent}
        account = "customer" if self._verdict.is_prepaid else "receivable"
        for run in sql.execute(_RUNS, {"org": self._org.id}):
            self._verdict.spent_usd += run.cost_usd
            # An agent's own provider bills it.
            charge = 0 if run.id in of_agents else credits.credits_of(run.cost_usd)
            if run.ended_at is None:
                yield f"{run.id} has not ended: {run.state}"
            if run.cost_usd != run.used_usd:
                yield f"{run.id} cost {run.cost_usd}, its usage {run.used_usd}"
            if run.charged != charge or run.accounts != [account] * bool(charge):
                yield f"{run.id}: {charge} credits, charged {run.charged} to {run.accounts}"
