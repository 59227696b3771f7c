"""The move of an org between two cells: how fast its rows are copied, and in how much memory.

Writes an org with runs and ten times as many events into one Postgres by COPY, and copies it to
another one on the same machine, by the command of the operator.

    .venv/bin/python -m bench.move_org [--runs 100000]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

import psutil
from sqlalchemy import create_engine, text

from arkloop.cli.dev.dev import path_of_children
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.ids import new_id
from arkloop.shared.storage import schema
from bench.figure import Figure
from bench.history.seeding import seed
from bench.service import POSTGRES, ROOT
from bench.table import line

_ORG = """
INSERT INTO orgs (id, name, suspended_at) VALUES (:org, 'moves', now() - interval '1 minute');
INSERT INTO users (id, login, email, password_hash) VALUES (:user, 'owner', 'owner', '');
INSERT INTO memberships (user_id, org_id, role) VALUES (:user, :org, 'owner')
"""
#: The history has runs that are executed by a worker which does not exist.
_NONE_IS_EXECUTED = "UPDATE runs SET state = 'waiting' WHERE org_id = :org AND state = 'executing'"


def measure(*, runs: int) -> list[Figure]:
    """Copy an org of this size once."""
    org_id = new_id()
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder) / "old", options=POSTGRES) as old,
        EmbeddedPostgres(Path(folder) / "new", options=POSTGRES) as new,
    ):
        for server in (old, new):
            schema.migrate(create_engine(server.url))
        _write(old.url, org_id, runs)
        seconds, rows, peak = _copied(old.url, new.url, org_id)
    count = sum(rows.values())
    return [
        Figure(
            name="rows copied and compared",
            unit="/s",
            numbers={"rate": count / seconds},
            count=count,
        ),
        Figure(
            name="copy of an org", unit="s", numbers={"mean": seconds}, count=rows["run_events"]
        ),
        Figure(
            name="peak memory of the command", unit="MB", numbers={"max": peak / 1e6}, count=count
        ),
    ]


def _write(url: str, org_id: UUID, runs: int) -> None:
    engine = create_engine(url)
    with engine.begin() as sql:
        for statement in _ORG.split(";"):
            names = {"org": org_id, "user": org_id}
            sql.execute(
                text(statement), {name: names[name] for name in names if f":{name}" in statement}
            )
    seed(url, org_id, runs=runs, long_run_events=0)
    with engine.begin() as sql:
        sql.execute(text(_NONE_IS_EXECUTED), {"org": org_id})
    engine.dispose()


def _copied(old: str, new: str, org_id: UUID) -> tuple[float, dict[str, int], int]:
    """Return seconds, rows by table, and the most bytes that the command had in memory."""
    command = [sys.executable, "-m", "arkloop.cli", "orgs", "copy", "--org", str(org_id)]
    environ = {"PATH": path_of_children(), "ARKLOOP_DATABASE_URL": old}
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(
        [*command, "--to", new], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.05)
        assert process.stdout is not None
        done = json.load(process.stdout)
    return time.perf_counter() - began, done["rows"], peak


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    for figure in measure(runs=parser.parse_args().runs):
        print(line(figure))
    return 0


if __name__ == "__main__":
    sys.exit(main())
