"""The effect on one org's runs of another org that does its worst, on the same worker.

The quiet org starts one run after the other. It does so alone first, then while the noisy org

- sends requests that its vendor refuses with 429, on the route that both share,
- has runs in threads with many thousand earlier runs,
- has runs in threads of many megabytes, more of them than fit into memory at once,
- has runs that write as much as they can,
- reads reports of much usage, many at a time.

Before that, beside processes that only compute, as the noisy org's clients do at most: how much of
a ratio the machine itself may add. Times alone and beside are taken in turns, so that other load on
the machine meets both.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import NullPool, create_engine, text

from arkloop.shared.actors import Actor
from arkloop.shared.storage.connections import Connections
from arkloop.shared.threads import threads as stored_threads
from bench import noise
from bench.conversations import script, targets_of
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Loop, Target, call_all
from bench.latency import Client
from bench.refusing_vendor import LARGE_CHARACTERS, refusing_vendor
from bench.service import Service

#: Of the p99 alone: what the quiet org may notice.
TARGET_RATIO = 2.0
MIB = 1024 * 1024
NOISY_RUNS = 8
NOISY_REPORTS = 40
REPORTS = ("", "/daily", "/by-model", "/by-end-user", "/by-metadata?key=team")
#: One for each of the clients and the vendor of a noisy org.
CLIENTS = 2
#: Until the noise is what it stays: the first seconds of an org's reports need no rest.
SETTLE_SECONDS = 4.0
ROUNDS = 4
LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 120.0

_ROUTES = """
routes:
  - id: shared
    provider: openai
    model: m
    base_url: "%s"
    context_tokens: 128000
    prices: {input: 0, output: 0}
"""
# Threads as they stand after many runs: a question, a finished turn and its answer each.
_THREADS = """
WITH made AS (
    UPDATE threads SET next_position = 2 * :runs + 1 WHERE id = ANY(:threads) RETURNING id
), asked AS (
    INSERT INTO messages (id, org_id, thread_id, created_by_user_id, position, role, content)
    SELECT gen_random_uuid(), :org_id, made.id, :user_id, 2 * n - 1, 'user', :question
    FROM made, generate_series(1, :runs) AS n
), ran AS (
    INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id,
        model, position, state, queued_at, started_at, ended_at)
    SELECT gen_random_uuid(), :org_id, made.id, :user_id, repeat('0', 32), 'plain@1', 'scripted',
        'scripted-1', 2 * n, 'completed', now(), now(), now()
    FROM made, generate_series(1, :runs) AS n
    RETURNING id, thread_id, position
), said AS (
    INSERT INTO run_events (run_id, seq, type, payload)
    SELECT id, 1, 'message.completed', :turn FROM ran
)
INSERT INTO messages (id, org_id, thread_id, run_id, position, role, content)
SELECT gen_random_uuid(), :org_id, thread_id, id, position, 'assistant', 'Yes.' FROM ran
"""
# Of now, so that no sums help.
_USAGE = """
INSERT INTO run_usage (run_id, route_id, org_id, user_id, persona_key, model, input_tokens,
    output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, usage_source, cost_usd,
    month, end_user_id, metadata)
SELECT gen_random_uuid(), 'scripted', :org_id, :user_id, 'plain', 'scripted-1', 100, 20, 0, 0, 0,
    'reported', 0.01, date_trunc('month', now() AT TIME ZONE 'UTC')::date, 'end-user-' || n % 10000,
    jsonb_build_object('team', 'team-' || n % 1000)
FROM generate_series(1, :rows) AS n
"""
_TURN = {
    "seq": 1,
    "type": "message.completed",
    "data": {"message_id": "m", "content": "Yes.", "usage": {"input_tokens": 1}},
    "created_at": "2026-01-01T00:00:00.000Z",
}


@dataclass(frozen=True, slots=True)
class Quiet:
    """Milliseconds from each POST to the first event and to the last one."""

    first: list[float]
    last: list[float]

    def add(self, more: "Quiet") -> None:
        self.first.extend(more.first)
        self.last.extend(more.last)

    @property
    def numbers(self) -> dict[str, float]:
        return {
            "first p50": percentile(self.first, 0.5),
            "first p99": percentile(self.first, 0.99),
            "last p50": percentile(self.last, 0.5),
            "last p99": percentile(self.last, 0.99),
        }


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure with two web processes and one worker, with the settings they have by default."""
    count, earlier, threads, used = (20, 2_000, 12, 30_000) if short else (100, 20_000, 60, 300_000)
    with (
        refusing_vendor() as vendor_url,
        tempfile.TemporaryDirectory(prefix="arkloop-bench-") as folder,
    ):
        routes = Path(folder) / "routes.yaml"
        routes.write_text(_ROUTES % vendor_url)
        with Service(web=2, environ={"ARKLOOP_ROUTES": str(routes)}) as service:
            bench = _Bench(service, count, 1 if short else ROUNDS)
            yield from bench.beside_clients()
            shared, too_large = {"route_id": "shared"}, "x" * LARGE_CHARACTERS
            yield from bench.against(
                "a vendor's 429", shared, noise.repeat, too_large, shared, NOISY_RUNS
            )
            bench.make_threads(NOISY_RUNS, runs=earlier, question="Is it so?")
            yield from bench.against(
                f"threads of {earlier:,} earlier runs", {}, noise.repeat_in, bench.threads
            )
            yield from bench.memory(threads)
            # In large pieces, as fast as they are taken.
            much = script({"say": "y" * 30_000, "repeat": 10_000})
            yield from bench.against("runs that write much", {}, noise.repeat, much, {}, 2)
            yield bench.redis_memory()
            bench.make_usage(used)
            reports = [f"/v1/me/usage{report}" for report in REPORTS]
            name = f"reports of {used:,} runs of today, {NOISY_REPORTS} at a time"
            yield from bench.against(name, {}, noise.repeat_get, reports, NOISY_REPORTS)


def _note(ways: Iterable[str]) -> str:
    return f"clients gave way in {', '.join(sorted(ways))}"


class _Bench:
    def __init__(self, service: Service, count: int, rounds: int) -> None:
        self.service = service
        self.rounds = rounds
        self.beside_computing: dict[str, float] = {}
        self.connections: Connections = service.connect()
        self.count = count
        self.quiet = Client(service, service.new_org("quiet")[1])
        self.noisy: Actor
        self.noisy, self.key = service.new_org("noisy")
        self.targets: list[Target] = targets_of(service, self.key)
        self.redis_peak = 0.0
        self._patient = create_engine(  # its statements have no time limit
            service.postgres.url, isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        self.runs({}, 10)  # the first runs of a process are slower

    # ---- the quiet org --------------------------------------------------------------------

    def runs(self, body: dict[str, Any], count: int) -> Quiet:
        first: list[float] = []
        last: list[float] = []
        for thread in self.quiet.threads(count, "hello"):
            self.quiet.reconnect()
            run = self.quiet.start(thread, body)
            self.quiet.hang_up()  # the run may take longer than an idle connection lasts
            self.quiet.until(lambda run=run: run.follower.ended_at, "the end")  # type: ignore[misc]  # its default has no type
            run.follower.close()
            assert run.follower.end == "run.completed", run.follower.end
            assert run.follower.ended_at is not None
            first.append((run.first_at["run.started"] - run.sent_at) * 1000)
            last.append((run.follower.ended_at - run.sent_at) * 1000)
            self.quiet.rest()
        return Quiet(first, last)

    def against(
        self,
        name: str,
        body: dict[str, Any],
        make: Callable[..., None],
        *args: Any,
    ) -> Iterator[Figure]:
        """Measure the quiet org's times alone, and beside what `make` does for the noisy org."""
        alone, beside, seconds, received = Quiet([], []), Quiet([], []), 0.0, 0
        ways = set[str]()
        for _ in range(self.rounds):
            alone.add(self.runs(body, self.count))
            with self.noise(make, *args) as stop:
                began, before = time.monotonic(), stop.done
                beside.add(self.runs(body, self.count))
                seconds += time.monotonic() - began
                received += stop.done - before
                ways.add(stop.way)
        if not received and self.rounds > 1:  # the short ones run on busy machines, too
            raise noise.NoiseFailed(f"{name}: the noisy org received nothing meanwhile")
        by_machine = (
            f"{kind} {beside.numbers[kind] / self.beside_computing[kind]:.2f}"
            for kind in ("first p99", "last p99")
        )
        note = (
            f"× beside computing: {', '.join(by_machine)};"
            f" the noisy org received {received / seconds:.1f} events or reports a second;"
            f" {_note(ways)}"
        )
        yield self._alone(name, alone)
        most = {n: TARGET_RATIO * alone.numbers[n] for n in ("first p99", "last p99")}
        yield self._beside(f"{name}: beside it", alone, beside, most, note)

    def beside_clients(self) -> Iterator[Figure]:
        """Measure the quiet org's times beside clients that ask nothing of the service."""
        name = f"{CLIENTS} clients that only compute"
        alone, beside, ways = Quiet([], []), Quiet([], []), set[str]()
        for _ in range(self.rounds):
            alone.add(self.runs({}, self.count))
            with ExitStack() as clients:
                stops = [clients.enter_context(noise.beside(noise.compute)) for _ in range(CLIENTS)]
                time.sleep(SETTLE_SECONDS)
                beside.add(self.runs({}, self.count))
                ways |= {stop.way for stop in stops}
        self.beside_computing = beside.numbers
        yield self._alone(name, alone)
        yield self._beside(f"{name}: beside them", alone, beside, {}, _note(ways))

    def _alone(self, name: str, alone: Quiet) -> Figure:
        count = len(alone.first)
        return Figure(name=f"{name}: alone", unit="ms", numbers=alone.numbers, count=count)

    def _beside(
        self, name: str, alone: Quiet, beside: Quiet, most: dict[str, float], note: str
    ) -> Figure:
        limit = Limit(name="alone", of="first p99", value=alone.numbers["first p99"])
        return Figure(
            name=name,
            unit="ms",
            numbers=beside.numbers,
            count=len(beside.first),
            at_most=most,
            limit=limit,
            note=note,
        )

    @contextmanager
    def noise(self, make: Callable[..., None], *args: Any) -> Iterator[noise.Stop]:
        """Let the noisy org do that beside the block, and look at the memory of Redis meanwhile."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_SECONDS):
                self.redis_peak = max(self.redis_peak, self._redis_used())

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            with noise.beside(make, self.targets, *args) as stop:
                time.sleep(SETTLE_SECONDS)
                yield stop
        finally:
            ended.set()
            looking.join()

    # ---- the noisy org --------------------------------------------------------------------

    def make_threads(self, threads: int, *, runs: int, question: str) -> None:
        """Make threads of the noisy org, each with that number of ended runs."""
        with self.connections.transaction() as tx:
            made = [stored_threads.create(tx, self.noisy).id for _ in range(threads)]
        self.threads = list(map(str, made))
        values = {
            "org_id": self.noisy.org_id,
            "user_id": self.noisy.user_id,
            "threads": made,
            "runs": runs,
            "question": question,
            "turn": json.dumps(_TURN),
        }
        with self._patient.connect() as sql:
            sql.execute(text(_THREADS), values)
            for table in ("threads", "runs", "messages", "run_events"):
                sql.execute(text(f"VACUUM ANALYZE {table}"))
        said = {"content": "And now?"}
        asked = [("POST", f"/v1/threads/{one}/messages", said) for one in self.threads]
        call_all(Loop(), self.targets, asked)

    def make_usage(self, rows: int) -> None:
        """Store the usage of that number of runs of the noisy org."""
        values = {"org_id": self.noisy.org_id, "user_id": self.noisy.user_id, "rows": rows}
        with self._patient.connect() as sql:
            sql.execute(text(_USAGE), values)
            sql.execute(text("VACUUM ANALYZE run_usage"))

    # ---- memory ---------------------------------------------------------------------------

    def memory(self, threads: int) -> Iterator[Figure]:
        """Measure the worker's memory while runs of many threads of 8 MB execute at once, and
        afterwards.
        """
        self.make_threads(threads, runs=33, question="word " * 50_000)
        said = {"content": script({"hang": 3}, {"say": "done"})}
        asked = [("POST", f"/v1/threads/{one}/messages", said) for one in self.threads]
        call_all(Loop(), self.targets, asked)
        [worker] = [psutil.Process(pid) for pid in self.service.serving("worker")]
        before = peak = worker.memory_info().rss / MIB

        with self.noise(noise.play_once, self.threads) as stop:
            beside = self.runs({}, self.count // 2)
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while self._active() and time.monotonic() < deadline:
                peak = max(peak, worker.memory_info().rss / MIB)
                time.sleep(0.05)
        time.sleep(SETTLE_SECONDS)
        numbers = {"before": before, "peak": peak, "after": worker.memory_info().rss / MIB}
        yield Figure(
            name=f"worker: runs in {threads} threads of 8 MB",
            unit="MiB",
            numbers=numbers,
            count=threads,
        )
        yield Figure(
            name=f"runs in {threads} threads of 8 MB: beside them",
            unit="ms",
            numbers=beside.numbers,
            count=len(beside.first),
            note=_note({stop.way}),
        )

    def _active(self) -> int:
        query = text("SELECT count(*) FROM runs WHERE org_id = :org_id AND ended_at IS NULL")
        with self.connections.reading() as sql:
            return int(sql.scalar(query, {"org_id": self.noisy.org_id}) or 0)

    def _redis_used(self) -> float:
        info = self.connections.redis.info("memory")
        return float(info["used_memory"]) / MIB

    def redis_memory(self) -> Figure:
        return Figure(
            name="Redis: two runs that write much, at a time",
            unit="MiB",
            numbers={"peak": self.redis_peak},
            count=2,
        )
