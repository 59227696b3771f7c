"""The time that one client waits on an idle system, for a run's first events and for a cancel.

Beside them what the same moment gives a program that does nothing else: a durable INSERT, and an
INSERT that is then sent to a reader through Redis.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench.baselines.round_trips import RoundTrips
from bench.conversations import prepare, script, targets_of
from bench.figure import Figure, Limit, percentile
from bench.http_clients import Caller, Follower, Loop, Target
from bench.service import Service

RUNS = 1000
CANCELS = 1000
SHORT_COUNT = 20
WARM_UP = 10
#: Between two measurements, so that what the last one left to do is done.
REST_SECONDS = 0.01
#: From the first event of a run to its cancel.
CANCEL_AFTER_SECONDS = 0.03
_PATIENCE_SECONDS = 60.0
#: The types of events of which the first is noted.
NOTED = ("run.started", "message.delta")


def measure(*, short: bool = False) -> Iterator[Figure]:
    """Measure one web process and one worker, one request at a time."""
    runs, cancels = (SHORT_COUNT, SHORT_COUNT) if short else (RUNS, CANCELS)
    with (
        Service(web=1, workers=1) as service,
        RoundTrips(service.postgres.url.replace("+psycopg", "", 1), service.redis.url) as raw,
    ):
        client = Client(service)
        yield from _first_events(client, raw, runs)
        streaming = script({"count": 500, "delay_ms": 20})
        yield _cancel(client, raw, "a run that streams", streaming, cancels)
        yield _cancel(client, raw, "a silent run", script({"hang": 60}), cancels)


def _first_events(client: "Client", raw: RoundTrips, count: int) -> Iterator[Figure]:
    names = ("GET /healthz", "POST → 201", "POST → run.started", "POST → first message.delta")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number, thread in enumerate(client.threads(WARM_UP + count, "hello")):
        raw.once()
        bare = client.call("GET", "/healthz")
        run = client.start(thread)
        client.finish(run)
        seen = (run.answered_at, run.first_at["run.started"], run.first_at["message.delta"])
        if number >= WARM_UP:
            times = (bare.seconds, *(at - run.sent_at for at in seen))
            for name, waited in zip(names, times, strict=True):
                seconds[name].append(waited)
        client.rest()
    insert = _limit("one INSERT, committed", raw.insert_seconds)
    event = _limit("INSERT, XADD → XREAD", raw.event_seconds)
    targets = {"POST → first message.delta": {"p50": 12.0, "p99": 25.0}}
    limits = {"GET /healthz": None, "POST → 201": insert}
    for name, values in seconds.items():
        yield Figure(
            name=f"idle: {name}",
            unit="ms",
            numbers=_milliseconds(values),
            count=count,
            at_most=targets.get(name, {}),
            limit=limits.get(name, event),
            note="1 web process, 1 worker",
        )


def _cancel(client: "Client", raw: RoundTrips, name: str, content: str, count: int) -> Figure:
    """Measure from the POST of the cancel until the client of the stream has its last event."""
    seconds: list[float] = []
    raw.event_seconds.clear()
    for number, thread in enumerate(client.threads(WARM_UP + count, content)):
        raw.once()
        # The model of the silent one has been asked; that of the other has begun to speak.
        waited = client.cancel(thread, "message.delta" if "count" in content else "run.started")
        if number >= WARM_UP:
            seconds.append(waited)
        client.rest()
    return Figure(
        name=f"idle: cancel of {name} → run.cancelled",
        unit="ms",
        numbers=_milliseconds(seconds),
        count=count,
        at_most={"p50": 8.0, "p99": 25.0},
        limit=_limit("INSERT, XADD → XREAD", raw.event_seconds),
        note="1 web process, 1 worker",
    )


@dataclass(slots=True)
class _Answer:
    status: int
    body: bytes
    sent_at: float
    answered_at: float

    @property
    def seconds(self) -> float:
        return self.answered_at - self.sent_at


@dataclass(slots=True)
class _Run:
    follower: Follower
    sent_at: float
    answered_at: float
    first_at: dict[str, float] = field(default_factory=dict)  # by type of event


class Client:
    """A keep-alive connection for requests, and one for each stream."""

    def __init__(self, service: Service, api_key: str | None = None) -> None:
        """Connect; `api_key` is that of another org than the service's own."""
        self.loop = Loop()
        self._targets = targets_of(service, api_key)
        self._target: Target = self._targets[0]
        self._caller = Caller(self.loop, self._target)

    def threads(self, count: int, content: str) -> list[str]:
        """Create `count` threads with this message; the connection may have been idle meanwhile."""
        self.hang_up()
        made = prepare(self.loop, self._targets, count, content)
        self.reconnect()
        return made

    def reconnect(self) -> None:
        """Take another connection: a server closes one that is idle for some seconds."""
        self.hang_up()
        self._caller = Caller(self.loop, self._target)

    def hang_up(self) -> None:
        self._caller.close()

    def call(self, method: str, path: str, body: object = None) -> _Answer:
        """Return the response, which is no error."""
        answers: list[_Answer] = []
        request = self._target.request(method, path, body)
        self._caller.call(request, lambda *details: answers.append(_Answer(*details)))
        self.until(lambda: answers, path)
        assert answers[0].status < 300, answers[0]
        return answers[0]

    def start(self, thread: str, body: object = None) -> _Run:
        """Start a run, followed from the moment at which its id is known."""
        answer = self.call("POST", f"/v1/threads/{thread}/runs", body or {})
        first_at: dict[str, float] = {}

        def note(_follower: Follower, data: bytes, at: float) -> None:
            for kind in NOTED:
                if kind not in first_at and b'"type":"%s"' % kind.encode() in data:
                    first_at[kind] = at

        run_id = json.loads(answer.body)["run_id"]
        follower = Follower(self.loop, self._target, run_id, on_data=note)
        return _Run(follower, answer.sent_at, answer.answered_at, first_at)

    def finish(self, run: _Run) -> None:
        """Follow a run to its end."""
        self.until(lambda: run.follower.ended_at, "the end")
        run.follower.close()

    def cancel(self, thread: str, wanted: str) -> float:
        """Start a run and cancel it shortly after its first event of the wanted type.

        Returns the seconds from the cancel until the client of the stream has its last event.
        """
        run = self.start(thread)
        self.until(lambda: wanted in run.first_at, wanted)
        self.loop.pause(CANCEL_AFTER_SECONDS)
        cancel = self.call("POST", f"/v1/runs/{run.follower.run_id}:cancel", {})
        self.finish(run)
        assert run.follower.end == "run.cancelled", run.follower.end
        assert run.follower.ended_at is not None
        return run.follower.ended_at - cancel.sent_at

    def until(self, done: Callable[[], object], what: str) -> None:
        self.loop.until(done, _PATIENCE_SECONDS, what)

    def rest(self) -> None:
        self.loop.pause(REST_SECONDS)


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    return {"p50": percentile(seconds, 0.5) * 1000, "p99": percentile(seconds, 0.99) * 1000}


def _limit(name: str, seconds: list[float]) -> Limit:
    return Limit(name=name, of="p50", value=percentile(seconds, 0.5) * 1000)
