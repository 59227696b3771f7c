"""Thousands of runs spend at once: does any budget, any balance give more than it has?

    .venv/bin/python -m bench.overspend [--trials 1000] [--spenders 64] [--seed 1] [--tree|--agents]

Each trial has a seed of its own, counted up from `--seed`, and draws its limits, costs and losses
from it; what happens at the same time is up to the machine. Exit status 1: something was overspent,
or the books are wrong.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.config import Settings
from arkloop.shared.storage import schema
from arkloop.shared.storage.checkouts import Patience
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.postgres import Timeouts
from bench.overspend.agent_trial import AgentTrial
from bench.overspend.org import Org
from bench.overspend.trial import Trial
from bench.overspend.verdict import Verdict

#: On a busy machine nothing must give up: what does has found a deadlock.
PATIENT = Timeouts(lock=50, statement=55, answer=60, checkout=Patience(120, 120))
#: Trials after which their rows are deleted: the last must be as fast as the first.
CLEANED_AFTER = 50


def main() -> int:
    options = _options()
    began = time.monotonic()
    verdicts: list[Verdict] = []
    with _database(options.spenders) as connections:
        for number in range(options.trials):
            seed = options.seed + number
            if options.agents:
                trial: Trial = AgentTrial(connections, spenders=options.spenders, seed=seed)
            else:
                make = Org.make_tree if options.tree else Org.make
                trial = Trial(connections, spenders=options.spenders, seed=seed, make=make)
            verdict = trial.run()
            verdicts.append(verdict)
            for fault in verdict.faults[:5]:
                print(f"seed {seed}: {fault}", flush=True)
            if (number + 1) % CLEANED_AFTER == 0:
                _say(verdicts, time.monotonic() - began)
                _clean(connections)
        deadlocks = _deadlocks(connections)
    _say(verdicts, time.monotonic() - began)
    print(f"{deadlocks} deadlocks")
    return int(deadlocks > 0 or any(v.faults or v.overspent_usd for v in verdicts))


def _deadlocks(connections: Connections) -> int:
    """Count the deadlocks that Postgres has ended."""
    with connections.reading() as sql:
        # Only what other sessions have reported is counted, and they report within a second.
        sql.execute(text("SELECT pg_sleep(2)"))
        return int(
            sql.scalar(
                text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            )
        )


def _say(verdicts: list[Verdict], seconds: float) -> None:
    print(
        f"{len(verdicts)} trials, {sum(v.runs for v in verdicts)} runs,"
        f" {sum(v.looks for v in verdicts)} looks, {seconds:.0f} s:"
        f" overspent {max(v.overspent_usd for v in verdicts):f} USD,"
        f" {sum(len(v.faults) for v in verdicts)} faults,"
        f" {sum(v.spent_usd for v in verdicts):f} USD spent",
        flush=True,
    )


@contextmanager
def _database(spenders: int) -> Iterator[Connections]:
    """Start a Postgres; no process listens for notifications by Redis."""
    settings = Settings(
        database_url="",
        redis_url="redis://",
        broker_url="redis://",
        jwt_secret="-",
        scripted=True,
        lease_seconds=300,  # in a part of it transactions must end
    )
    with (
        tempfile.TemporaryDirectory(prefix="arkloop-overspend-") as folder,
        EmbeddedPostgres(Path(folder) / "postgres", options={"fsync": "off"}) as postgres,
    ):
        engine = create_engine(postgres.url)
        schema.migrate(engine)
        engine.dispose()
        connections = connect(
            replace(settings, database_url=postgres.url, database_pool_size=spenders + 8),
            application="overspend",
            timeouts=PATIENT,
            send=lambda *_: None,
        )
        try:
            yield connections
        finally:
            connections.close()


def _clean(connections: Connections) -> None:
    with connections.transaction() as tx:
        # Only the superuser of a database that is thrown away may do that to a ledger.
        tx.sql.execute(text("ALTER TABLE ledger_entries DISABLE TRIGGER ledger_entries_stay"))
        tx.sql.execute(text("TRUNCATE ledger_entries, run_usage, run_events, orgs CASCADE"))
        tx.sql.execute(text("ALTER TABLE ledger_entries ENABLE TRIGGER ledger_entries_stay"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--spenders", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tree", action="store_true", help="all runs of a trial but the first are its sub-runs"
    )
    parser.add_argument(
        "--agents",
        action="store_true",
        help="as --tree, and the first and half of the others are runs of custom agents",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
