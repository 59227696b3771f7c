"""Creating runs and opening streams in an org with limits, beside one without, in one web process.

The orgs take turns, so that a disturbance meets each of them. The limits are never reached: what is
measured is what they cost those who keep to them.
"""

import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from sqlalchemy import text

from arkloop.shared.accounts import org_settings
from arkloop.shared.org_limits import LIMITS
from arkloop.shared.storage.connections import Connections
from bench.conversations import PREPARING, lost
from bench.create import CLIENTS
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Follower, Loop, Request, Target, call_all
from bench.service import Service

ROUNDS = 4
RUNS = 300
SHORT_ROUNDS = 1
SHORT_RUNS = 100
UNDER_WAY = 5_000
SHORT_UNDER_WAY = 200
_HIGH = 10_000_000
_PATIENCE_SECONDS = 120.0
_LEFT = text("SELECT count(*) FROM runs WHERE state IN ('queued', 'executing')")
#: Copies of a run, each in a thread of its own.
_COPIES = text("""
WITH opened AS (
    INSERT INTO threads (id, org_id, created_by_user_id, is_private)
    SELECT gen_random_uuid(), t.org_id, t.created_by_user_id, false
    FROM runs r JOIN threads t ON t.id = r.thread_id, generate_series(1, :count)
    WHERE r.id = :id RETURNING id
)
INSERT INTO runs SELECT (jsonb_populate_record(
    r, jsonb_build_object('id', gen_random_uuid(), 'thread_id', opened.id)
)).*
FROM runs r, opened WHERE r.id = :id
""")
_COPIES_AT_ONCE = 100

OFF = "without limits"
ON = "with all limits"


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure one web process and one worker; an even number of samples for each org."""
    rounds, runs, under_way = (
        (SHORT_ROUNDS, SHORT_RUNS, SHORT_UNDER_WAY) if short else (ROUNDS, RUNS, UNDER_WAY)
    )
    with Service(web=1, workers=1) as service:
        trial = _Trial(service, under_way)
        trial.play(trial.orgs, runs // 2)
        trial.forget()  # it was a warm-up
        for _ in range(rounds):
            trial.play([*trial.orgs, *reversed(trial.orgs)], runs)
        yield from trial.figures()


class _Trial:
    """The orgs, and what each of their rounds took."""

    def __init__(self, service: Service, under_way: int) -> None:
        self._service = service
        self._connections = service.connect()
        self._loop = Loop()
        many = f"{ON}, {under_way:,} runs under way"
        self._targets = {OFF: self._org("off", 0), ON: self._org("on", _HIGH)}
        self._targets[many] = self._org("many", _HIGH)
        self._put_under_way(self._targets[many], under_way)
        self.orgs = [*self._targets]
        self.forget()

    def forget(self) -> None:
        """Forget what was measured."""
        self.seconds: dict[str, list[float]] = defaultdict(list)  # of each request
        self.rates: dict[tuple[str, str], list[float]] = defaultdict(list)  # of each round
        self.cpu: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.lost = 0

    def play(self, orgs: Sequence[str], runs: int) -> None:
        """Let each of the orgs in turn create as many runs, and follow them when all have ended."""
        for org in orgs:
            target = self._targets[org]
            requests: list[Request] = [("POST", "/v1/runs", {"message": "hello"})] * runs
            cpu, began = self._cpu(), time.perf_counter()
            answers = call_all(self._loop, [target], requests, connections=CLIENTS)
            self._note("create", org, runs, began, cpu)
            assert {201} == {status for status, _, _ in answers}, answers[0]
            self.seconds[org] += [seconds for _, _, seconds in answers]
            ids = [json.loads(body)["run_id"] for _, body, _ in answers]
            _wait(self._connections)
            self.lost += lost(self._connections, ids)
            cpu, began = self._cpu(), time.perf_counter()
            self._follow(target, ids)
            self._note("stream", org, runs, began, cpu)

    def figures(self) -> Iterator[Figure]:
        for (what, org), rates in self.rates.items():
            off = statistics.median(self.rates[what, OFF])
            count = len(self.seconds[org])
            yield Figure(
                name=f"{'create runs' if what == 'create' else 'open and read streams'}, {org}",
                unit="requests/s",
                numbers={"rate": statistics.median(rates)},
                count=count,
                at_least={} if org == OFF else {"ratio": 0.9},
                limit=None if org == OFF else Limit(name=OFF, of="rate", value=off),
                note=", ".join(self._notes(what, org, count)),
            )
        yield Figure(
            name="runs in orgs with and without limits: lost",
            unit="runs",
            numbers={"lost": self.lost},
            count=sum(map(len, self.seconds.values())),
            at_most={"lost": 0},
            is_promise=True,
        )

    def _notes(self, what: str, org: str, count: int) -> Iterator[str]:
        rates = self.rates[what, org]
        yield f"rounds {min(rates):.0f} to {max(rates):.0f}"
        for role, used in self.cpu[what, org].items():
            yield f"{role} {used / count * 1000:.2f} ms of CPU"
        if what == "create":
            yield f"p99 {percentile(self.seconds[org], 0.99) * 1000:.0f} ms"

    def _note(self, what: str, org: str, runs: int, began: float, cpu: Counter[str]) -> None:
        self.rates[what, org].append(runs / (time.perf_counter() - began))
        self.cpu[what, org] += self._cpu() - cpu

    def _cpu(self) -> Counter[str]:
        return Counter({role: self._service.cpu(role) for role in ("web", "postgres", "redis")})

    def _org(self, name: str, most: int) -> Target:
        owner, key = self._service.new_org(name)
        if most:
            with self._connections.transaction() as tx:
                org_settings.change(tx, owner.org_id, dict.fromkeys(LIMITS, most))
        return Target(self._service.urls[0], key)

    def _put_under_way(self, target: Target, count: int) -> None:
        """Let the org have as many runs that wait for their time."""
        body = {"message": "hello", "not_before": "2027-06-01T00:00:00Z"}
        [(status, made, _)] = call_all(self._loop, [target], [("POST", "/v1/runs", body)])
        assert status == 201, made
        values = {"id": json.loads(made)["run_id"]}
        for first in range(1, count, _COPIES_AT_ONCE):
            with self._connections.transaction() as tx:
                tx.sql.execute(_COPIES, {**values, "count": min(_COPIES_AT_ONCE, count - first)})
        with self._connections.reading() as sql:
            sql.execute(text("ANALYZE runs"))

    def _follow(self, target: Target, run_ids: Sequence[str]) -> None:
        """Follow the runs from their first event to their last one, as many at once as clients."""
        waiting = list(run_ids)
        followers: list[Follower] = []
        while waiting or followers:
            while waiting and len(followers) < PREPARING:
                followers.append(Follower(self._loop, target, waiting.pop()))
            self._loop.turn()
            for one in followers:
                if one.ended_at is not None:
                    one.close()
            followers = [one for one in followers if one.is_open]


def _wait(connections: Connections) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with connections.reading() as sql:
            left = sql.scalar(_LEFT)
        if not left:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{left} runs have not ended")
        time.sleep(0.05)
