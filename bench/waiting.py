"""The cost of ten thousand runs that wait for a person, and the delay until an answer takes effect.

The runs are written to the database in groups, by the functions that the API calls, and a real
worker executes them up to their question; memory and connections are measured on the way. Then a
worker with two slots takes its place. Some runs are answered over HTTP, everything is restarted,
and some more are answered.

The worker that parks them has more slots (`--park-slots`), because a worker whose slots are all
taken asks for messages only every other second: with two slots ten thousand runs take hours.

    .venv/bin/python -m bench.waiting [--runs 10000] [--answers 200] [--park-slots 100]
                                     [--source FOLDER] [--json]
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import func, select, text

from arkloop.shared import ids
from arkloop.shared.accounts import accounts
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.runs import creation
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import runs as runs_table
from arkloop.shared.threads import threads
from bench.watcher import Clients, Figure, Watcher, machine, show, until
from chaos.journal import Journal
from chaos.system.member import Member
from chaos.system.stack import DEFAULT, ROOT, Stack

GROUP = 100
MILESTONES = (100, 1_000, 5_000, 10_000)
AT_ONCE = 20
#: Of the worker that answers.
SLOTS = 2
AFTER_RESTART = 50
PARK_SECONDS = 1200.0
ANSWER_SECONDS = 60.0
SCRIPT = json.dumps(
    {
        "script": [
            {"say": "Let me ask. "},
            {"tool": "ask_user", "args": {"question": "Which city?", "options": ["Paris", "Rome"]}},
            {"say": "Thank you. "},
        ]
    }
)
#: Both are measured for every answer, by its events at a follower.
FELT, DONE = "run.input_received", "run.completed"


class SlotStack(Stack):
    """A stack whose next worker has this number of slots."""

    slots = SLOTS

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "ARKLOOP_WORKER_CONCURRENCY": str(self.slots)}


class Bench:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.clients = Clients(stack)
        self.connections: Connections = stack.connect()
        self.redis = stack.redis_client()
        self.memory: list[dict[str, Any]] = []
        self.figures: list[Figure] = []

    def create(self, number: int) -> None:
        """Create threads with a message and a queued run each; a group is one transaction."""
        actor = self._actor()
        persona = personas.builtin()["assistant@1"]
        route = model_routes.load(self.connections.settings)["scripted"]
        for size in _groups(number):
            with self.connections.transaction() as tx:
                for _ in range(size):
                    thread = threads.create(tx, actor)
                    threads.add_message(tx, actor, thread.id, content=SCRIPT)
                    new = creation.NewRun(
                        actor=actor,
                        thread_id=thread.id,
                        persona=persona,
                        route=route,
                        trace_id=ids.new_trace_id(),
                    )
                    creation.create(tx, new)

    def waiting(self) -> int:
        """Count the runs that wait for a person."""
        count = select(func.count()).where(runs_table.c.state == "waiting")
        with self.connections.reading() as sql:
            return int(sql.scalar(count) or 0)

    async def all_wait(self, number: int) -> None:
        """Wait until `number` runs wait."""
        await until(lambda: self.waiting() >= number, PARK_SECONDS, f"{number} runs wait")

    def some_waiting(self, number: int) -> list[tuple[str, int]]:
        """Return id and last event's number of `number` waiting runs, chosen at random."""
        last_seq = (
            select(func.max(run_events.c.seq))
            .where(run_events.c.run_id == runs_table.c.id)
            .scalar_subquery()
            .label("last_seq")
        )
        query = (
            select(runs_table.c.id, last_seq)
            .where(runs_table.c.state == "waiting")
            .order_by(func.random())
            .limit(number)
        )
        with self.connections.reading() as sql:
            found = [(str(row.id), int(row.last_seq)) for row in sql.execute(query)]
        assert len(found) == number, f"{len(found)} of {number} runs wait"
        return found

    def measure(self, seconds: float) -> None:
        """Measure the memory of all processes of a role, and connections, at this moment."""
        with self.connections.reading() as sql:
            sessions = sql.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
            )
        row = {
            "waiting": self.waiting(),
            "seconds": round(seconds, 1),
            "web_mib": [_mib(member) for member in self.stack.web],
            "worker_mib": [_mib(member) for member in self.stack.workers],
            "postgres_connections": sessions,
            "redis_connections": self.redis.info("clients")["connected_clients"],
            "redis_mib": round(self.redis.info("memory")["used_memory"] / 2**20, 1),
        }
        self.memory.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), file=sys.stderr)

    def tell(self, name: str, values: list[float], **targets: float) -> None:
        self.figures.append(Figure(name, values, targets))
        show(self.figures[-1])

    async def answer(self, found: list[tuple[str, int]], at_once: int, name: str) -> None:
        """Answer these runs, `at_once` at the same time."""
        felt: list[float] = []
        done: list[float] = []
        for start in range(0, len(found), at_once):
            group = [
                Watcher(self.clients, run_id, after_seq=seq)
                for run_id, seq in found[start : start + at_once]
            ]
            tasks = [asyncio.create_task(one.watch()) for one in group]
            # The first bytes of a stream come before any event: nobody is late for the answer.
            await _connected(group)
            answered = await asyncio.gather(*(self._answer(one) for one in group))
            await asyncio.wait_for(asyncio.gather(*tasks), ANSWER_SECONDS)
            for at, one in zip(answered, group, strict=True):
                first, last = one.first(FELT), one.first(DONE)
                assert first is not None and last is not None, one.seen
                felt.append(first.at - at)
                done.append(last.at - at)
        self.tell(f"{name}: 200 → {FELT}", felt, p95=0.5)
        self.tell(f"{name}: 200 → {DONE}", done)

    async def _answer(self, watcher: Watcher) -> float:
        await self.clients.post("/v1/runs/{id}/input", watcher.run_id, {"content": "Paris"})
        return time.perf_counter()

    def _actor(self) -> Actor:
        with self.connections.reading() as sql:
            owner = accounts.find(sql, "owner-a")
        assert owner is not None
        return Actor(
            org_id=owner.org_id,
            user_id=owner.id,
            role="owner",
            permissions=PERMISSIONS_OF_ROLE["owner"],
        )


async def _connected(watchers: list[Watcher]) -> None:
    await until(lambda: all(one.is_connected for one in watchers), 30, "streams are open")


def _groups(number: int) -> Iterator[int]:
    for start in range(0, number, GROUP):
        yield min(GROUP, number - start)


def _mib(member: Member) -> float:
    """Return the resident memory of a member and all below it."""
    assert member.pid is not None
    first = psutil.Process(member.pid)
    family = [first, *first.children(recursive=True)]
    resident = sum(int(one.memory_info().rss) for one in family)
    return round(resident / 2**20, 1)


async def measure(stack: SlotStack, number: int, answers: int) -> Bench:
    """Measure everything on one stack."""
    bench = Bench(stack)
    bench.measure(0)
    began = time.perf_counter()
    created = 0
    for milestone in sorted({*(one for one in MILESTONES if one < number), number}):
        await asyncio.to_thread(bench.create, milestone - created)
        created = milestone
        await bench.all_wait(milestone)
        bench.measure(time.perf_counter() - began)
    parking = stack.workers.pop()
    await asyncio.to_thread(parking.stop)
    stack.slots = SLOTS
    stack.start_worker()
    await asyncio.to_thread(stack.wait_ready)
    bench.measure(time.perf_counter() - began)
    await bench.answer(bench.some_waiting(answers), 1, "one at a time")
    await bench.answer(bench.some_waiting(answers), AT_ONCE, f"{AT_ONCE} at once")
    bench.measure(time.perf_counter() - began)
    members = [*stack.web, *stack.workers]
    await asyncio.gather(*(asyncio.to_thread(one.stop, signal.SIGKILL) for one in members))
    await asyncio.to_thread(stack.redis.restart_empty)
    for one in members:
        one.start()
    await asyncio.to_thread(stack.wait_ready)
    bench.measure(time.perf_counter() - began)
    await bench.answer(bench.some_waiting(min(AFTER_RESTART, answers)), 1, "all restarted")
    return bench


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--answers", type=int, default=200, help="of each kind")
    parser.add_argument("--park-slots", type=int, default=100)
    parser.add_argument("--source", type=Path, default=ROOT, help="the code that is measured")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="arkloop-waiting-") as folder:
        stack = SlotStack(Path(folder), Journal(), workers=1, pace=DEFAULT, source=options.source)
        stack.slots = options.park_slots
        with stack:
            bench = asyncio.run(measure(stack, options.runs, options.answers))
    rows = [figure.row() for figure in bench.figures]
    about = {**before, "park_slots": options.park_slots, "load_at_the_end": machine()["load"]}
    if options.json:
        print(json.dumps({**about, "memory": bench.memory, "rows": rows}))
    else:
        print(", ".join(f"{name} {value}" for name, value in about.items()))
    return 1 if any(row["missed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
