"""The cost of one unit: CPU of each process, statements, WAL and Redis commands of a run, of a
cancel, and of an event that is followed.

    .venv/bin/python -m bench.costs [--runs N] [--rounds N] [--only NAME …] [--statements N]

CPU time is what the kernel has counted for the processes, to the nanosecond; other load on the
machine changes it by some percent, where it changes times by a multiple. Statements are counted by
pg_stat_statements, within which those of triggers and functions are part of the statement that
caused them.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from sqlalchemy import text

from arkloop.shared.storage.connections import Connections
from bench.conversations import prepare, script, targets_of, wait_for_ends
from bench.http_clients import Follower, Loop, Request, call_all
from bench.service import POSTGRES, Service

CLIENTS = 32
ROLES = ("web", "worker", "postgres", "redis")
#: Before the first round: what a fresh process does once is not the cost of a run.
WARM_UP = 300
FOLLOWED = 20
DELTAS = 100

_STATEMENTS = """
SELECT query, calls, total_exec_time, total_plan_time, wal_bytes FROM pg_stat_statements
WHERE query NOT LIKE '%pg_stat_statements%' AND query NOT LIKE '%count(*)%ended_at%'
ORDER BY total_exec_time + total_plan_time DESC
"""
_WAL = "SELECT wal_bytes, wal_records, wal_fpi FROM pg_stat_wal"


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one unit; CPU by role in milliseconds."""

    cpu: Mapping[str, float]
    statements: Sequence[tuple[str, float, float, float]]  # name, calls, ms, bytes of WAL
    wal_bytes: float
    commands: Mapping[str, tuple[float, float]]  # calls, microseconds


class Meter:
    """The use of a service since the last `begin`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._connections: Connections = service.connect()
        self._redis = redis.Redis.from_url(service.redis.url, decode_responses=True)
        with self._connections.transaction() as tx:
            tx.sql.execute(text("CREATE EXTENSION IF NOT EXISTS pg_stat_statements"))

    def begin(self) -> None:
        with self._connections.reading() as sql:
            sql.execute(text("SELECT pg_stat_statements_reset()"))
            self._wal = int(sql.scalar(text(_WAL)) or 0)
        self._redis.config_resetstat()
        self._cpu = self._spent()

    def end(self, count: int) -> Cost:
        """Return the cost of one of the `count` units."""
        spent = self._spent()
        with self._connections.reading() as sql:
            rows = sql.execute(text(_STATEMENTS)).all()
            wal = int(sql.scalar(text(_WAL)) or 0) - self._wal
        commands = {
            name.removeprefix("cmdstat_"): (one["calls"] / count, one["usec"] / count)
            for name, one in self._redis.info("commandstats").items()
            if name not in ("cmdstat_config|resetstat", "cmdstat_config", "cmdstat_info")
        }
        return Cost(
            {role: (spent[role] - self._cpu[role]) / count * 1000 for role in ROLES},
            [
                (_name(row[0]), row[1] / count, (row[2] + row[3]) / count, float(row[4]) / count)
                for row in rows
            ],
            wal / count,
            dict(sorted(commands.items(), key=lambda item: -item[1][1])),
        )

    def wait(self) -> None:
        wait_for_ends(self._connections)

    def _spent(self) -> dict[str, float]:
        return {role: sum(map(_cpu, self._service.serving(role))) for role in ROLES}


def _cpu(pid: int) -> float:
    """Return the seconds of CPU of all threads."""
    spent = 0
    with suppress(FileNotFoundError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9


def _name(query: str) -> str:
    """Return the statement's first comment, or its beginning."""
    flat = re.sub(r"\s+", " ", query).strip()
    return flat.split(". ")[0][:90] if flat.startswith("--") else flat[:90]


def of_runs(service: Service, meter: Meter, loop: Loop, count: int) -> int:
    """Create runs with 32 clients and execute them meanwhile: one delta each."""
    targets = targets_of(service)
    threads = prepare(loop, targets, count, "hello")
    requests: list[Request] = [("POST", f"/v1/threads/{one}/runs", {}) for one in threads]
    meter.begin()
    answers = call_all(loop, targets, requests, connections=CLIENTS)
    meter.wait()
    assert {201} == {status for status, _, _ in answers}
    return count


def of_cancels(service: Service, meter: Meter, loop: Loop, count: int) -> int:
    """Cancel runs whose model is silent, from 8 clients."""
    targets = targets_of(service)
    count = min(count, 150)  # all of them execute at once
    threads = prepare(loop, targets, count, script({"hang": 60}))
    starts: list[Request] = [("POST", f"/v1/threads/{one}/runs", {}) for one in threads]
    bodies = call_all(loop, targets, starts, connections=8)
    runs = [re.search(rb'"run_id":\s*"([^"]+)"', body) for _, body, _ in bodies]
    ids = [found[1].decode() for found in runs if found]
    for one in ids:  # its model has been asked
        Follower(loop, targets[0], one, on_data=lambda f, _data, _at: f.close())
    loop.pause(1.0)
    meter.begin()
    cancels: list[Request] = [("POST", f"/v1/runs/{one}:cancel", {}) for one in ids]
    answers = call_all(loop, targets, cancels, connections=8)
    meter.wait()
    assert {200} == {status for status, _, _ in answers}
    return count


def of_events(service: Service, meter: Meter, loop: Loop, _count: int) -> int:
    """Follow 20 runs of 100 deltas, one each 20 ms; a unit is an event at its follower."""
    targets = targets_of(service)
    content = script({"count": DELTAS, "delay_ms": 20})
    threads = prepare(loop, targets, FOLLOWED, content)
    meter.begin()
    starts: list[Request] = [("POST", f"/v1/threads/{one}/runs", {}) for one in threads]
    bodies = call_all(loop, targets, starts, connections=8)
    runs = [re.search(rb'"run_id":\s*"([^"]+)"', body) for _, body, _ in bodies]
    followers = [Follower(loop, targets[0], found[1].decode()) for found in runs if found]
    loop.until(lambda: all(one.end for one in followers), 60, "the ends")
    return sum(one.received for one in followers)


UNITS: Mapping[str, Callable[[Service, Meter, Loop, int], int]] = {
    "run": of_runs,
    "cancel": of_cancels,
    "event": of_events,
}


def measure(units: Sequence[str], runs: int, rounds: int) -> Iterator[tuple[str, list[Cost]]]:
    """Measure each unit in several rounds of one service."""
    POSTGRES["shared_preload_libraries"] = "pg_stat_statements"
    with Service(web=1, workers=1) as service:
        loop, meter = Loop(), Meter(service)
        of_runs(service, meter, loop, WARM_UP)
        for unit in units:
            costs = []
            for _ in range(rounds):
                count = UNITS[unit](service, meter, loop, runs)
                costs.append(meter.end(count))
            yield unit, costs


def report(unit: str, costs: Sequence[Cost], most: int) -> str:
    """Render the median of the rounds, and the statements and commands of the last one."""
    cpu = {role: statistics.median(one.cpu[role] for one in costs) for role in ROLES}
    spread = {role: [round(one.cpu[role], 3) for one in costs] for role in ROLES}
    last = costs[-1]
    lines = [
        f"{unit}: CPU ms: {sum(cpu.values()):.3f}"
        f" = {', '.join(f'{role} {cpu[role]:.3f}' for role in ROLES)}"
        f"; WAL {statistics.median(one.wal_bytes for one in costs):.0f} bytes"
        f"; {sum(row[1] for row in last.statements):.2f} statements"
        f"; {sum(calls for calls, _ in last.commands.values()):.2f} Redis commands",
        f"  rounds: {spread}",
    ]
    lines += [
        f"  {calls:8.3f} calls {spent:8.4f} ms {wal:8.0f} B  {name}"
        for name, calls, spent, wal in last.statements[:most]
    ]
    lines += [
        f"  {calls:8.3f} calls {spent:8.1f} µs  {name}"
        for name, (calls, spent) in list(last.commands.items())[:most]
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.costs", description=__doc__)
    parser.add_argument("--runs", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=sorted(UNITS), default=list(UNITS))
    parser.add_argument("--statements", type=int, default=12, help="how many are listed")
    options = parser.parse_args()
    for unit, costs in measure(options.only, options.runs, options.rounds):
        print(report(unit, costs, options.statements), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
