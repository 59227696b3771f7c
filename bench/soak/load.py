"""Clients of a soaked service: at a steady rate, each kind of run in its turn.

Every run is followed to its end, which must be the one of its kind, without a gap.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.conversations import script
from bench.http_clients import Caller, Follower, Loop, Target

#: What takes longer has not happened: a busy machine delays webhooks and ends by tens of seconds.
LATE_SECONDS = 120.0
RETRY_SECONDS = 1.0
#: The first requests are sent after this pause.
FIRST_SECONDS = 0.5
#: Half of what a client token lives.
TOKEN_SECONDS = 450.0
#: Runs of one conversation before the next one begins.
TURNS = 5
TOOL, PERSONA = "order_status", "soaked"
_COMPLETED, _FAILED, _CANCELLED = "run.completed", "run.failed", "run.cancelled"
_WORDS = "one two three four five six seven eight nine ten eleven twelve"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of run: what the model plays, and what its client does."""

    name: str
    steps: Sequence[Mapping[str, Any]]
    end: str = _COMPLETED
    fields: Mapping[str, Any] = field(default_factory=dict)
    followers: int = 1
    leaves: bool = False  # and comes back
    cancels: bool = False
    answer: str | None = None  # to what the run asks
    is_by_end_user: bool = False
    has_file: bool = False


def _calls(tool: str, **args: Any) -> list[dict[str, Any]]:
    return [{"tool": tool, "args": args}, {"say": "done"}]


TALK = Kind("talk", [{"say": _WORDS, "delay_ms": 10}])
_CALCULATION = _calls("calculator", expression="6*7")
_LONG = [{"count": 100, "delay_ms": 20}]
#: One round of the load.
KINDS = (
    TALK,
    Kind("several followers", _LONG, followers=3),
    TALK,
    Kind("cancel", [{"count": 3000, "delay_ms": 20}], end=_CANCELLED, cancels=True),
    Kind("tool", _CALCULATION),
    TALK,
    Kind("approval", _CALCULATION, fields={"persona_id": "careful"}, answer="yes"),
    Kind("end user", TALK.steps, is_by_end_user=True),
    TALK,
    Kind("HTTP tool", _calls(TOOL, order=1), fields={"persona_id": PERSONA}),
    Kind("question", _calls("ask_user", question="Which one?"), answer="The first."),
    TALK,
    Kind("a client that leaves", _LONG, leaves=True),
    Kind("file", [{"describe": True}], has_file=True),
    TALK,
    Kind("failure", [{"say": "so "}, {"error": "invalid_request"}], end=_FAILED),
)
#: Requests that have to wait for those of the same org.
REPORTS = "/v1/me/usage"
#: What else is requested, and every how many seconds.
READS = {
    "/v1/runs?limit=50": 1.0,
    "/v1/threads?limit=50": 1.0,
    "/v1/runs?limit=50&status=failed": 5.0,
    "/v1/me/usage": 5.0,
    "/v1/me/usage/daily": 5.0,
    "/v1/me/usage/by-model": 10.0,
    "/v1/webhook-endpoints?limit=50": 10.0,
}


class Load:
    """The load on the web processes of `targets`; `turn` it until the time is over.

    `seconds` has the latency of creates and of first deltas since the last `take`, `faults` what
    must not happen, `ended` the runs. Of `requests` those that were `unavailable` are no faults.
    """

    def __init__(self, loop: Loop, targets: Sequence[Target], rate: float, file_id: str) -> None:
        self.loop, self.faults, self.ended = loop, Counter[str](), list[str]()
        self._targets, self._rate, self._file_id = targets, rate, file_id
        self._token, self._token_at = "", -TOKEN_SECONDS
        self._threads: list[tuple[str, int]] = []  # idle ones, and how many runs they have had
        self._runs: set[_Run] = set()
        self._calls: set[_Call] = set()
        self.requests = self.unavailable = 0
        self._next = time.perf_counter() + FIRST_SECONDS
        self._next_reads = dict.fromkeys(READS, self._next)
        self._number = 0
        self._again: list[tuple[float, Callable[[], None]]] = []  # in the order of their times
        self.seconds: dict[str, list[float]] = {}
        self.take()

    def take(self) -> dict[str, list[float]]:
        """Return the latencies since the last call."""
        taken, self.seconds = self.seconds, {"create": [], "first delta": []}
        return taken

    @property
    def created(self) -> int:
        return self._number

    def turn(self) -> None:
        """Send what is due, and handle what has arrived."""
        now = time.perf_counter()
        if now - self._token_at > TOKEN_SECONDS:
            self._token_at = now
            self._renew_token()
        if not self._token:  # end users have none yet
            self._next = max(self._next, now + FIRST_SECONDS)
        while self._next <= now:
            self._next += 1 / self._rate
            self._create(KINDS[self._number % len(KINDS)])
            self._number += 1
        while self._again and self._again[0][0] <= now:
            self._again.pop(0)[1]()
        for path, due in self._next_reads.items():
            if due <= now and not any(one.path == path for one in self._calls):
                self._next_reads[path] = now + READS[path]
                self.call("GET", path)
        try:
            self.loop.turn(max(0.0, min(0.05, self._next - time.perf_counter())))
        except ConnectionError as error:
            self.fault(f"a connection: {error}")
        for run in [one for one in self._runs if now - one.began > LATE_SECONDS]:
            self.fault(f"a run ({run.kind.name}) has not ended within {LATE_SECONDS:g} s")
            self.over(run)
        for call in [one for one in self._calls if now - one.began > LATE_SECONDS]:
            self.fault(f"{call.name}: no success within {LATE_SECONDS:g} s")
            self.answered(call)

    def finish(self) -> None:
        """Create nothing more, and wait for the responses and the ends of what there is."""
        self._next = math.inf
        self._next_reads.clear()
        while self._runs or self._calls:  # each of them ends, or is late
            self.turn()

    def fault(self, what: str) -> None:
        self.faults[what] += 1

    def target(self, kind: Kind, number: int = 0) -> Target:
        """Return one of the web processes, by turns, as this kind of client."""
        self.requests += 1
        target = self._targets[(self.requests + number) % len(self._targets)]
        return target.with_token(self._token) if kind.is_by_end_user else target

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        then: Callable[[Any], None] | None = None,
        *,
        kind: Kind = TALK,
        timed: str = "",
    ) -> None:
        """Make a request on a connection of its own; anything but a success is a fault, and so is
        no success within `LATE_SECONDS`.
        """
        call = _Call(self, method, path, body, then, kind, timed)
        self._calls.add(call)
        call.send()

    def answered(self, call: "_Call") -> None:
        """Wait for the response to a request no longer."""
        self._calls.discard(call)
        call.close()

    def is_waiting_for(self, call: "_Call") -> bool:
        return call in self._calls

    def later(self, again: Callable[[], None]) -> None:
        """Do it when `Retry-After` is over."""
        self._again.append((time.perf_counter() + RETRY_SECONDS, again))

    def over(self, run: "_Run") -> None:
        """Forget a run; its thread is free for the next one."""
        self._runs.discard(run)
        run.close()
        if run.has_ended:
            self.ended.append(run.run_id)
        if run.kind is TALK and run.turn < TURNS and run.has_ended:
            self._threads.append((run.thread_id, run.turn))

    def _create(self, kind: Kind) -> None:
        message: Any = script(*map(dict, kind.steps))
        if kind.has_file:
            parts = [{"type": "text", "text": message}, {"type": "file", "file_id": self._file_id}]
            message = {"content": parts}
        body = {"message": message, **kind.fields}
        if not kind.is_by_end_user:
            body["route_id"] = "scripted"
        turn = 0
        # The oldest one: its last run's end is a while ago.
        if kind is TALK and len(self._threads) > 50:
            body["thread_id"], turn = self._threads.pop(0)
        sent = time.perf_counter()

        def created(run: dict[str, Any]) -> None:
            thread = run.get("thread_id") or body["thread_id"]
            self._runs.add(_Run(self, kind, run["run_id"], thread, turn + 1, sent))

        self.call("POST", "/v1/runs", body, created, kind=kind, timed="create")

    def _renew_token(self) -> None:
        scopes = [
            f"data.{kind}.{what}" for kind in ("threads", "runs") for what in ("read", "write")
        ]
        body = {"end_user_id": "customer-1", "scopes": scopes, "persona_id": PERSONA}

        def renewed(made: dict[str, Any]) -> None:
            self._token = made["token"]

        self.call("POST", "/v1/client-tokens", body, renewed)


@dataclass(eq=False, slots=True)
class _Call:
    """A request, until it succeeds or is a fault."""

    load: Load
    method: str
    path: str
    body: Any
    then: Callable[[Any], None] | None
    kind: Kind
    timed: str
    began: float = field(default_factory=time.perf_counter)
    caller: Caller | None = None

    @property
    def name(self) -> str:
        return f"{self.method} {self.path.partition('?')[0][:20]}"

    def send(self) -> None:
        target = self.load.target(self.kind)
        self.caller = Caller(self.load.loop, target)
        self.caller.call(target.request(self.method, self.path, self.body), self._on_answer)

    def close(self) -> None:
        if self.caller is not None:
            self.caller.close()
            self.caller = None

    def _on_answer(self, status: int, data: bytes, sent: float, at: float) -> None:
        self.close()
        # As documented: the machine has too little time, or the org a report under way.
        if status == 503 or (status == 429 and self.path.startswith(REPORTS)):
            self.load.unavailable += status == 503
            self.load.later(self._send_again)
            return
        self.load.answered(self)
        if status >= 300:
            self.load.fault(f"{self.name}: {status} {data[:120]!r}")
            return
        if self.timed:
            self.load.seconds[self.timed].append(at - sent)
        if self.then is not None:
            self.then(json.loads(data))

    def _send_again(self) -> None:
        if self.load.is_waiting_for(self):
            self.send()


class _Run:
    """A run and its followers."""

    def __init__(
        self, load: Load, kind: Kind, run_id: str, thread_id: str, turn: int, began: float
    ) -> None:
        self.kind, self.run_id, self.thread_id, self.turn = kind, run_id, thread_id, turn
        self.began = began
        self.has_ended = False
        self._load = load
        self._has_delta = self._has_acted = False
        self._followers = {self._follow(number) for number in range(kind.followers)}

    def close(self) -> None:
        for one in self._followers:
            one.close()
        self._followers.clear()

    def _follow(self, number: int, after_seq: int = 0) -> Follower:
        target = self._load.target(self.kind, number)
        return Follower(
            self._load.loop,
            target,
            self.run_id,
            after_seq=after_seq,
            on_data=self._on_data,
            on_refused=self._on_refused,
        )

    def _on_refused(self, follower: Follower, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 503"):
            self._load.fault(f"a stream ({self.kind.name}): {data[:120]!r}")
            self._load.over(self)
            return
        self._load.unavailable += 1
        self._load.later(lambda: self._follow_again(follower))

    def _follow_again(self, refused: Follower) -> None:
        if refused in self._followers:
            self._followers.discard(refused)
            self._followers.add(self._follow(0, refused.cursor))

    def _on_data(self, follower: Follower, data: bytes, at: float) -> None:
        if not self._has_delta and b'"type":"message.delta"' in data:
            self._has_delta = True
            self._load.seconds["first delta"].append(at - self.began)
            if self.kind.leaves:
                # Without a farewell, and with another web process.
                follower.close()
                self._followers.discard(follower)
                self._followers.add(self._follow(1, follower.cursor))
                return
            if self.kind.cancels:
                self._load.call("POST", f"/v1/runs/{self.run_id}:cancel")
        if b'"type":"run.waiting_for_input"' in data and not self._has_acted:
            self._has_acted = True
            body = {"content": self.kind.answer}
            self._load.call("POST", f"/v1/runs/{self.run_id}/input", body)
        if follower.end is None:
            return
        follower.close()
        self._followers.discard(follower)
        if follower.end != self.kind.end:
            self._load.fault(f"a run ({self.kind.name}) ended with {follower.end}")
        if follower.holes:
            self._load.fault(f"a stream ({self.kind.name}) has a gap")
        if not self._followers:
            self.has_ended = True
            self._load.over(self)
