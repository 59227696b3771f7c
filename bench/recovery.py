"""The time for which a run stands still when something dies, freezes or is deployed, as its
followers see it.

The whole system at the pace of production (a lease of 15 s, a heartbeat and a sweep every 2 s):
two web processes, three workers, twenty runs in progress, each followed live. The beginning of
each fault is at a random phase of heartbeats and sweeps.

    .venv/bin/python -m bench.recovery [--kills 10] [--only PART …] [--source FOLDER] [--json]
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

from sqlalchemy import select

from arkloop.shared.runs import claims
from arkloop.shared.storage.tables.runs import runs, workers
from bench.watcher import Clients, Figure, Watcher, gaps, machine, show, until
from chaos.journal import Journal
from chaos.system.member import Member
from chaos.system.stack import DEFAULT, ROOT, Stack

RUNS = 20
#: One step of 5 s: its words come every 50 ms, then a tool is called.
STEP = (
    {"say": "word ", "repeat": 100, "delay_ms": 50},
    {"tool": "calculator", "args": {"expression": "6*7"}},
)
STEPS = STEP * 12
#: Longer than the longest pause between two sweeps.
PHASES_SECONDS = 4.0
#: A round with fewer runs says too little.
FEWEST = 3
TOO_LONG_SECONDS = 60.0


class Bench:
    """A stack with runs that are always in progress."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.clients = Clients(stack)
        self.figures: list[Figure] = []
        self.watched: dict[str, Watcher] = {}
        self._connections = stack.connect()
        self._population: list[asyncio.Task[None]] = []

    def tell(self, name: str, values: list[float], rounds: int = 1, **targets: float) -> None:
        self.figures.append(Figure(name, values, targets, rounds))
        show(self.figures[-1])

    def held_by(self, worker: Member) -> list[Watcher]:
        """Return the watchers of the runs that this process executes at this moment."""
        held = (
            select(runs.c.id)
            .join(workers, workers.c.id == runs.c.owner)
            .where(workers.c.pid == worker.pid, runs.c.state == "executing")
        )
        with self._connections.reading() as sql:
            ids = [str(run_id) for run_id in sql.scalars(held)]
        return [self.watched[run_id] for run_id in ids if run_id in self.watched]

    def victim(self) -> tuple[Member, list[Watcher]]:
        """Choose a worker at random and return it with the runs that it holds.

        One that was just restarted holds none, and a round with it would measure nothing.
        """
        candidates = [(worker, self.held_by(worker)) for worker in self.stack.workers]
        return self.clients.rng.choice([one for one in candidates if len(one[1]) >= FEWEST])

    def web_victim(self) -> tuple[Member, list[Watcher]]:
        """Choose a web process at random with its followers; after a kill all are at the other."""
        at: dict[str, list[Watcher]] = {}
        for one in self.watched.values():
            if one.is_connected:
                at.setdefault(one.opened[-1].url, []).append(one)
        candidates = [(web, at.get(web.url or "", [])) for web in self.stack.web]
        return self.clients.rng.choice([one for one in candidates if len(one[1]) >= FEWEST])

    def suspects(self, held: list[Watcher]) -> set[str]:
        """Return those that were lost twice within a step: a process executes one of them at a
        time.
        """
        ids = [UUID(one.run_id) for one in held]
        query = select(runs.c.id).where(runs.c.id.in_(ids), claims.IS_SUSPECT)
        with self._connections.reading() as sql:
            return {str(run_id) for run_id in sql.scalars(query)}

    async def phase(self) -> None:
        """Sleep for a random time, in which the runs continue."""
        await asyncio.sleep(self.clients.rng.uniform(1, 1 + PHASES_SECONDS))

    async def populate(self, number: int) -> None:
        """Keep `number` runs from now on: when one ends another begins."""
        self._population = [asyncio.create_task(self._one_after_the_other()) for _ in range(number)]
        await until(lambda: len(self.flowing()) == number, TOO_LONG_SECONDS, "all runs flow")

    async def depopulate(self) -> None:
        """Cancel them all."""
        for task in self._population:
            task.cancel()
        await asyncio.gather(*self._population, return_exceptions=True)
        await asyncio.gather(
            *(self.clients.post("/v1/runs/{id}:cancel", run_id) for run_id in self.watched)
        )
        self._population.clear()
        self.watched.clear()

    def flowing(self) -> list[Watcher]:
        """Return those whose last event is younger than a second."""
        now = time.perf_counter()
        return [one for one in self.watched.values() if one.seen and now - one.seen[-1].at < 1]

    async def settled(self) -> None:
        """Wait until all processes are there, and all runs flow again."""
        await asyncio.to_thread(self.stack.wait_ready)
        await until(
            lambda: len(self.flowing()) >= len(self._population) - 1,
            TOO_LONG_SECONDS,
            "all runs flow again",
        )

    async def _one_after_the_other(self) -> None:
        while True:
            run_id = await self.clients.start_run(*STEPS)
            watcher = self.watched[run_id] = Watcher(self.clients, run_id)
            await watcher.watch()
            del self.watched[run_id]


async def resumed(held: list[Watcher], since: float, seconds: float) -> dict[str, float]:
    """Measure the seconds from `since` to `run.resumed`, by run; not of those that ended
    instead.
    """
    await until(
        lambda: all(one.first("run.resumed", since=since) or one.has_ended for one in held),
        seconds,
        "all runs are resumed",
    )
    firsts = {one.run_id: one.first("run.resumed", since=since) for one in held}
    waits = {run_id: first.at - since for run_id, first in firsts.items() if first is not None}
    assert waits, "a round that measured nothing"
    return waits


async def kills(bench: Bench, count: int) -> None:
    """Send SIGKILL to one worker of three."""
    silent: list[float] = []
    of_suspects: list[float] = []
    await bench.populate(RUNS)
    began = time.perf_counter()
    await asyncio.sleep(10)
    flow = gaps(list(bench.watched.values()), began)
    bench.tell("baseline: from one event to the next", flow)
    for _ in range(count):
        await bench.phase()
        victim, held = bench.victim()
        since = time.perf_counter()
        await asyncio.to_thread(victim.kill)
        waits = await resumed(held, since, TOO_LONG_SECONDS)
        suspects = bench.suspects(held)
        silent += waits.values()
        of_suspects += [wait for run_id, wait in waits.items() if run_id in suspects]
        await bench.settled()
    bench.tell("worker killed → run.resumed", silent, count, p50=4, max=8)
    bench.tell("  of that, lost for the second time within a step", of_suspects, count)
    others = sorted(silent)
    for wait in of_suspects:
        others.remove(wait)
    bench.tell("  of that, all others", others, count)
    await bench.depopulate()


async def freezes(bench: Bench, count: int) -> None:
    """Send SIGSTOP to one worker of three, for longer than the lease."""
    silent: list[float] = []
    await bench.populate(RUNS)
    for _ in range(count):
        await bench.phase()
        victim, held = bench.victim()
        since = time.perf_counter()
        await asyncio.to_thread(victim.freeze)
        silent += (await resumed(held, since, TOO_LONG_SECONDS)).values()
        victim.thaw()
        await bench.settled()
    bench.tell("worker frozen → run.resumed", silent, count, max=20)
    await bench.depopulate()


async def cancels(bench: Bench, count: int) -> None:
    """Cancel runs whose worker, the only one, was just killed, or just froze."""
    only, *others = bench.stack.workers
    for other in others:
        await asyncio.to_thread(other.stop)
    for how, limit in (("killed", 20.0), ("frozen", 20.0)):
        waits: list[float] = []
        for _ in range(count):
            await bench.populate(5)
            await bench.phase()
            held = bench.held_by(only)
            assert held, "a round that measured nothing"
            if how == "killed":
                await asyncio.to_thread(only.stop, signal.SIGKILL)
            else:
                await asyncio.to_thread(only.freeze)
            waits += await asyncio.gather(*(_cancel(bench, one) for one in held))
            await bench.depopulate()
            if how == "killed":
                only.start()
            else:
                only.thaw()
            await asyncio.to_thread(only.wait_ready)
        bench.tell(f"only worker {how}, then cancel → run.cancelled", waits, count, max=limit)
    for other in others:
        other.start()
    await bench.settled()


async def _cancel(bench: Bench, watcher: Watcher) -> float:
    await bench.clients.post("/v1/runs/{id}:cancel", watcher.run_id)
    answered = time.perf_counter()
    await until(lambda: watcher.has_ended, TOO_LONG_SECONDS, "run.cancelled")
    assert watcher.seen[-1].type == "run.cancelled", watcher.seen[-1]
    return watcher.seen[-1].at - answered


async def deploys(bench: Bench, count: int) -> None:
    """Send SIGTERM to one worker of three."""
    silent: list[float] = []
    until_resumed: list[float] = []
    await bench.populate(RUNS)
    for _ in range(count):
        await bench.phase()
        victim, held = bench.victim()
        since = time.perf_counter()
        victim.terminate()
        until_resumed += (await resumed(held, since, TOO_LONG_SECONDS)).values()
        for one in held:
            if (first := one.first("run.resumed", since=since)) is not None:
                silent.append(first.at - one.seen[one.seen.index(first) - 1].at)
        await asyncio.to_thread(victim.wait_gone, TOO_LONG_SECONDS)
        await bench.settled()
    bench.tell("worker gets SIGTERM → run.resumed", until_resumed, count)
    bench.tell("  of that, no event came for", silent, count)
    await bench.depopulate()


async def web_kills(bench: Bench, count: int) -> None:
    """Send SIGKILL to one web process of two, master and child."""
    opened: list[float] = []
    event: list[float] = []
    await bench.populate(RUNS)
    for _ in range(count):
        await bench.phase()
        victim, held = bench.web_victim()
        since = time.perf_counter()
        await asyncio.to_thread(victim.kill)
        for one in held:
            await _is_back(one, since)
            if one.opened[-1].at > since:
                opened.append(one.opened[-1].at - since)
                again = [seen.at for seen in one.seen if seen.at >= one.opened[-1].at]
                event.append(again[0] - since)
        await bench.settled()
    bench.tell("web process killed → stream open at the other", opened, count)
    bench.tell("web process killed → next event", event, count)
    await bench.depopulate()


async def _is_back(watcher: Watcher, since: float) -> None:
    def has_events() -> bool:
        opened = watcher.opened[-1].at
        return watcher.has_ended or (opened > since and watcher.seen[-1].at >= opened)

    await until(has_events, TOO_LONG_SECONDS, "the stream is back")


PARTS: dict[str, Callable[[Bench, int], Awaitable[None]]] = {
    "kills": kills,
    "freezes": freezes,
    "cancels": cancels,
    "deploys": deploys,
    "web-kills": web_kills,
}


async def measure(stack: Stack, kills: int, only: list[str]) -> list[Figure]:
    """Measure all parts one after the other, on one stack."""
    bench = Bench(stack)
    for name in only:
        count = {"kills": kills, "freezes": 3, "cancels": 3}.get(name, 5)
        await PARTS[name](bench, count)
    return bench.figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--source", type=Path, default=ROOT, help="the code that is measured")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="arkloop-recovery-") as folder:
        with Stack(
            Path(folder), Journal(), workers=3, pace=DEFAULT, source=options.source
        ) as stack:
            figures = asyncio.run(measure(stack, options.kills, options.only))
    rows = [figure.row() for figure in figures]
    about = {**before, "load_at_the_end": machine()["load"]}
    if options.json:
        print(json.dumps({**about, "rows": rows}))
    else:
        print(", ".join(f"{name} {value}" for name, value in about.items()))
    return 1 if any(row["missed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
