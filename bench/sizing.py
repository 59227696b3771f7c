"""Figures for docs/how-to/sizing.md: what a run costs in CPU, disk and memory, and what processes
hold.

    .venv/bin/python -m bench.sizing [--runs 200]

Two kinds of runs, each followed by one client: a chat, which is one model call, and an agent, which
makes three calls of a tool in four model calls. Both stream 150 words in 50 pieces, so slowly that
each piece is an event on any machine. CPU is that of processes, without what they use when idle, so
that a busy machine changes it less than any time.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import redis
from sqlalchemy import text

from arkloop.shared.storage.connections import Connections
from bench import table
from bench.figure import Figure
from bench.http_clients import Follower, Loop, Target, call_all
from bench.machine import commit, machine
from bench.service import Service

_TEXT = {"count": 50, "delay_ms": 600}
_CALL = {"tool": "calculator", "args": {"expression": "6*7"}}
KINDS: Mapping[str, list[dict[str, Any]]] = {
    "chat": [_TEXT],
    "agent": [_CALL, _CALL, _CALL, _TEXT],
}
AT_ONCE = 100
IDLE_SECONDS = 20.0
EXECUTING = 200
_SECONDS = 600.0
_KIB = 1024

#: Bytes of tables with their indexes: those of events, and of everything else.
_SIZES = text(
    "SELECT c.oid::regclass::text LIKE 'run_events%', sum(pg_total_relation_size(c.oid))::bigint"
    " FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace GROUP BY 1"
)


def main() -> int:
    """Measure, and print each figure."""
    parser = argparse.ArgumentParser(prog="python -m bench.sizing", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    print(json.dumps({**machine(), "commit": commit()}), flush=True)
    figures: list[Figure] = []
    with Service(web=1, workers=1) as service:
        connections = service.connect()
        for figure in _figures(service, connections, runs):
            print(table.line(figure), flush=True)
            figures.append(figure)
    print(table.table({"sizing": figures}))
    return 0


def _figures(service: Service, connections: Connections, runs: int) -> Iterator[Figure]:
    for steps in KINDS.values():  # each code path once, before anything is counted
        _follow(service, [*steps[:-1], {"say": "done"}], AT_ONCE)
    yield from _processes(service, connections)
    idle = _idle(service)
    yield Figure(
        name="idle: CPU of a second",
        unit="ms",
        numbers={role: 1000 * rate for role, rate in idle.items()},
        count=1,
    )
    for kind, steps in KINDS.items():
        yield from _runs(service, connections, kind, steps, runs, idle)
    yield _executing(service)


def _processes(service: Service, connections: Connections) -> Iterator[Figure]:
    """Count memory and connections of processes that have served and have nothing to do."""
    for role in ("web", "worker"):
        [pid], [memory] = service.serving(role), service.memory(role)
        with connections.reading() as sql:
            count = sql.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY(:names)"),
                {"names": [f"arkloop-{role}", *(["arkloop-lease"] * (role == "worker"))]},
            )
        yield Figure(
            name=f"an idle {role} process",
            unit="",
            numbers={
                "MiB": memory / _KIB / _KIB,
                "Postgres": float(count or 0),
                "Redis": float(service.redis_connections(pid)),
            },
            count=1,
            note="memory of its own; connections",
        )


def _idle(service: Service) -> dict[str, float]:
    """Return the seconds of CPU that each role uses in a second without any work."""
    before, began = service.cpu_of_all(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    seconds = time.monotonic() - began
    return {role: (now - before[role]) / seconds for role, now in service.cpu_of_all().items()}


def _runs(
    service: Service,
    connections: Connections,
    kind: str,
    steps: list[dict[str, Any]],
    runs: int,
    idle: Mapping[str, float],
) -> Iterator[Figure]:
    """Execute runs and divide what they have cost by their number."""
    stored, kept = _stored(connections), _used(service)
    cpu, began = service.cpu_of_all(), time.monotonic()
    events = _follow(service, steps, runs)
    seconds = time.monotonic() - began
    cpu = {
        role: now - cpu[role] - seconds * idle[role] for role, now in service.cpu_of_all().items()
    }
    kept = _used(service) - kept
    stored = {name: now - stored[name] for name, now in _stored(connections).items()}
    yield Figure(
        name=f"{kind}: CPU of a run",
        unit="ms",
        numbers={role: 1000 * cpu[role] / runs for role in ("web", "worker", "postgres", "redis")},
        count=runs,
    )
    yield Figure(
        name=f"{kind}: stored for a run",
        unit="KiB",
        numbers={
            "events": stored["events"] / runs / _KIB,
            "else": stored["else"] / runs / _KIB,
            "WAL": stored["wal"] / runs / _KIB,
            "Redis": kept / runs / _KIB,
        },
        count=runs,
        note=f"{events / runs:.1f} events",
    )
    yield Figure(
        name=f"{kind}: a million events",
        unit="GiB",
        numbers={
            "events": stored["events"] / events * 1e6 / _KIB**3,
            "with all else": (stored["events"] + stored["else"]) / events * 1e6 / _KIB**3,
        },
        count=events,
    )


def _follow(service: Service, steps: list[dict[str, Any]], runs: int) -> int:
    """Create runs, `AT_ONCE` at a time, and follow each to its end; returns how many events."""
    loop, target = Loop(), Target(service.urls[0], service.api_key)
    events = 0
    for start in range(0, runs, AT_ONCE):
        ids = _create(loop, target, steps, min(AT_ONCE, runs - start))
        followers = [Follower(loop, target, run_id) for run_id in ids]
        events += _ended(loop, followers)
    return events


def _ended(loop: Loop, followers: list[Follower]) -> int:
    """Wait for the ends of all runs; returns how many events they had."""
    loop.until(lambda: all(one.end for one in followers), _SECONDS, "ends")
    for one in followers:
        assert one.end == "run.completed" and not one.holes
        one.close()
    return sum(one.received for one in followers)


def _create(loop: Loop, target: Target, steps: list[dict[str, Any]], runs: int) -> list[str]:
    body = {"message": json.dumps({"script": steps})}
    requests = [("POST", "/v1/runs", body)] * runs
    answers = call_all(loop, [target], requests, connections=AT_ONCE, seconds=_SECONDS)
    assert {201} == {status for status, _, _ in answers}
    return [json.loads(answer)["run_id"] for _, answer, _ in answers]


def _stored(connections: Connections) -> dict[str, int]:
    """Return bytes of events, of all other tables, and of the WAL that was ever written."""
    with connections.reading() as sql:
        found: dict[bool, int] = dict(sql.execute(_SIZES).tuples().all())
        wal = sql.scalar(text("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))
    return {"events": int(found[True]), "else": int(found[False]), "wal": int(wal or 0)}


def _used(service: Service) -> int:
    client = redis.Redis.from_url(service.redis.url)
    used = int(client.info("memory")["used_memory"])
    client.close()
    return used


def _executing(service: Service) -> Figure:
    """Count the memory of a worker for each run that waits for its model."""
    loop, target = Loop(), Target(service.urls[0], service.api_key)
    [before] = service.memory("worker")
    ids = _create(loop, target, [{"say": "later", "delay_ms": 20_000}], EXECUTING)
    followers = [Follower(loop, target, run_id) for run_id in ids]
    loop.until(lambda: all(one.received for one in followers), _SECONDS, "starts")
    loop.pause(1)
    [after] = service.memory("worker")
    for one in followers:
        one.close()
    return Figure(
        name="a run that waits for its model",
        unit="KiB",
        numbers={"worker": (after - before) / EXECUTING / _KIB},
        count=EXECUTING,
    )


if __name__ == "__main__":
    sys.exit(main())
