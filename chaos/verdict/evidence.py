"""A journal, sorted by what the checks ask of it: runs, their events, streams and bodies.

Nothing here judges, and nothing here fails on a journal that is incomplete.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from chaos.verdict.windows import NOTICED_SECONDS, Windows

CRASHED = "worker.crashed"
LOSSES_OF_A_POISON_RUN = 2

Record = Mapping[str, Any]

TERMINAL_STATUS = {
    "run.completed": "completed",
    "run.failed": "failed",
    "run.cancelled": "cancelled",
}
TEXT = ("message.delta", "message.thinking", "tool.call.delta")

#: Clients wait no longer: a body without `seconds` was requested at most this long before.
LONGEST_ANSWER = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run, decoded; `at` is when a client had it first."""

    seq: int
    type: str
    data: Mapping[str, Any]
    created_at: float | None
    line: str
    at: float

    @property
    def is_terminal(self) -> bool:
        return self.type in TERMINAL_STATUS


@dataclass(slots=True)
class Stream:
    """A connection to a run's events."""

    name: str
    after_seq: int | None = None
    status: int = 200
    follower: str | None = None
    opened_at: float = 0.0
    why: str | None = None
    frames: list[tuple[int | None, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Look:
    """A run's body at one time: asked for not before `asked_at`, here at `at`."""

    asked_at: float
    at: float
    body: Mapping[str, Any]

    @property
    def status(self) -> str:
        return str(self.body.get("status"))

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL_STATUS.values()

    @property
    def last_seq(self) -> int:
        return whole(self.body.get("last_seq")) or 0

    @property
    def ended_at(self) -> float | None:
        return next(
            (
                ended
                for status in TERMINAL_STATUS.values()
                if (ended := moment(self.body.get(f"{status}_at"))) is not None
            ),
            None,
        )


@dataclass(frozen=True, slots=True)
class Replay:
    at: float
    url: str
    lines: list[str]


@dataclass(slots=True)
class Run:
    """All that clients learned of one run."""

    id: str
    accepted: list[Record] = field(default_factory=list)
    cancels: list[float] = field(default_factory=list)
    inputs: list[Record] = field(default_factory=list)
    streams: dict[str, Stream] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    reconnects: list[Record] = field(default_factory=list)
    #: What is at each seq; of several versions the one that was seen first.
    by_seq: dict[int, Event] = field(default_factory=dict)
    #: (seq, one version, another) where two clients saw different bytes.
    disputed: list[tuple[int, str, str]] = field(default_factory=list)
    #: Lines that are no event.
    unreadable: list[str] = field(default_factory=list)
    #: `by_seq` from 1 to before the first hole.
    events: list[Event] = field(default_factory=list)

    @property
    def expect(self) -> Mapping[str, Any]:
        return next((a["expect"] for a in self.accepted if a.get("expect")), {})

    @property
    def thread_id(self) -> str | None:
        told = [a.get("thread_id") for a in self.accepted]
        told += [look.body.get("thread_id") for look in self.looks]
        return next((str(thread) for thread in told if thread), None)

    @property
    def last_look(self) -> Look | None:
        return self.looks[-1] if self.looks else None

    @property
    def status(self) -> str | None:
        """The final status; None if nobody looked."""
        return self.looks[-1].status if self.looks else None

    @property
    def terminal(self) -> Event | None:
        return next((event for event in self.events if event.is_terminal), None)

    @property
    def is_whole(self) -> bool:
        """True if `events` is the run from its beginning to its end."""
        return bool(self.events) and self.events[-1].is_terminal

    @property
    def ended_at(self) -> float | None:
        """The time of its end by its terminal event, else by its body."""
        if self.terminal is not None and self.terminal.created_at is not None:
            return self.terminal.created_at
        return next((look.ended_at for look in self.looks if look.is_terminal), None)

    def of_type(self, *types: str) -> list[Event]:
        return [event for event in self.events if event.type in types]


@dataclass(slots=True)
class Evidence:
    runs: dict[str, Run]
    faults: Windows
    redis_faults: Windows
    other_faults: Windows
    #: Faults, and deaths of processes that nobody meant to kill just then.
    disturbances: Windows
    answers: list[Record]
    no_answers: list[Record]
    lost_streams: list[Record]
    surprises: list[Record]
    foreign: list[Record]
    effects: Counter[str]
    #: The last list of each thread's messages.
    threads: dict[str, Record]
    worker_deaths: list[float]

    def is_unlucky(self, run: Run, error: Any) -> bool:
        """Return whether it was given up because its worker was killed three times, by chance."""
        begin, end = run.events[0].created_at if run.events else None, run.ended_at
        if not isinstance(error, Mapping) or error.get("code") != CRASHED:
            return False
        if begin is None or end is None:
            return False
        kills = sum(begin < at <= end + NOTICED_SECONDS for at in self.worker_deaths)
        return kills > LOSSES_OF_A_POISON_RUN

    def messages(self, thread_id: str | None, after: float) -> list[Record] | None:
        """Return the thread's messages; None if nobody looked at them after that time."""
        record = self.threads.get(str(thread_id))
        if record is None or not isinstance(record.get("body"), list) or at_of(record) < after:
            return None
        return [message for message in record["body"] if isinstance(message, Mapping)]

    def runs_by_thread(self) -> dict[str, list[Run]]:
        threads: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs.values():
            if run.thread_id is not None:
                threads[run.thread_id].append(run)
        return threads


def sort(journal: Iterable[Record]) -> Evidence:
    """Read a journal once, in the order of time."""
    records = sorted(journal, key=at_of)
    runs: dict[str, Run] = {}
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        kind = str(record.get("kind"))
        kinds[kind].append(record)
        run_id = record.get("run_id")
        if isinstance(run_id, str) and kind in _OF_RUN:
            _add(runs.setdefault(run_id, Run(run_id)), kind, record)
    for run in runs.values():
        run.looks.sort(key=lambda look: look.at)
        seq = 1
        while seq in run.by_seq:
            run.events.append(run.by_seq[seq])
            seq += 1
    deaths = [r for r in kinds["process"] if r.get("what") == "died"]
    faults = Windows.of_faults(kinds["fault"])
    return Evidence(
        runs=runs,
        faults=faults,
        redis_faults=Windows(tuple(w for w in faults.windows if w.is_of_redis)),
        other_faults=Windows(tuple(w for w in faults.windows if not w.is_of_redis)),
        disturbances=Windows.of_faults(kinds["fault"], kinds["process"]),
        answers=kinds["answer"],
        no_answers=kinds["no_answer"],
        lost_streams=[r for r in kinds["stream_end"] if r.get("why") == "lost"],
        surprises=kinds["surprise"],
        foreign=kinds["foreign"],
        effects=Counter(str(r.get("key")) for r in kinds["effect"]),
        threads={str(record.get("thread_id")): record for record in kinds["messages"]},
        worker_deaths=[at_of(r) for r in deaths if r.get("role") == "worker"],
    )


_OF_RUN = frozenset(
    {
        "accepted",
        "cancel_accepted",
        "input_accepted",
        "stream_open",
        "event",
        "stream_end",
        "run",
        "replay",
        "reconnect_after_end",
    }
)


def _add(run: Run, kind: str, record: Record) -> None:
    at = at_of(record)
    match kind:
        case "accepted":
            run.accepted.append(record)
        case "cancel_accepted":
            run.cancels.append(at)
        case "input_accepted":
            run.inputs.append(record)
        case "reconnect_after_end":
            run.reconnects.append(record)
        case "run":
            body = record.get("body")
            if isinstance(body, Mapping) and "status" in body:
                seconds = record.get("seconds")
                asked_at = at - (seconds if isinstance(seconds, int | float) else LONGEST_ANSWER)
                run.looks.append(Look(asked_at, at, body))
        case "replay":
            lines = [str(line) for line in record.get("lines") or ()]
            run.replays.append(Replay(at, str(record.get("url")), lines))
            for line in lines:
                _learn(run, line, at)
        case "event":
            line = str(record.get("line"))
            _stream(run, record).frames.append((whole(record.get("id")), line))
            _learn(run, line, at)
        case "stream_open":
            stream = _stream(run, record)
            stream.after_seq = whole(record.get("after_seq"))
            stream.status = whole(record.get("status")) or 200
            stream.follower = record.get("follower")
            stream.opened_at = at
        case "stream_end":
            _stream(run, record).why = record.get("why")


def _stream(run: Run, record: Record) -> Stream:
    name = str(record.get("stream"))
    return run.streams.setdefault(name, Stream(name))


def _learn(run: Run, line: str, at: float) -> None:
    event = decode(line, at)
    if event is None:
        run.unreadable.append(line)
        return
    known = run.by_seq.setdefault(event.seq, event)
    if known.line != line:
        run.disputed.append((event.seq, known.line, line))


def decode(line: str, at: float = 0.0) -> Event | None:
    """Decode the event of a raw line; None if the line is none."""
    try:
        frame = json.loads(line)
    except ValueError:
        return None
    if not isinstance(frame, dict):
        return None
    seq, kind, data = whole(frame.get("seq")), frame.get("type"), frame.get("data")
    if seq is None or not isinstance(kind, str) or not isinstance(data, dict):
        return None
    return Event(seq, kind, data, moment(frame.get("created_at")), line, at)


def moment(text: Any) -> float | None:
    """Return the seconds since the epoch of an RFC 3339 text."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def whole(value: Any) -> int | None:
    """Return the value if it is an integer."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def at_of(record: Record) -> float:
    """Return when it was written; 0 if that is missing."""
    at = record.get("at")
    return float(at) if isinstance(at, int | float) and math.isfinite(at) else 0.0
