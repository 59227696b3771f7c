"""Journals as a load would write them: tales of runs, which are then rendered."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.chaos.told_events import Happened, usage

Record = dict[str, Any]

EPOCH = 1_790_000_000.0
URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2")
#: What makes a body of a completed run one that still runs.
NOT_ENDED = {"status": "running", "phase": "executing", "completed_at": None}
NEVER = {"completed_at": None, "failed_at": None, "cancelled_at": None}


@dataclass
class Told:
    """A run: what happened, and what differs from what follows from it."""

    name: str
    events: list[Happened]
    expect: dict[str, Any]
    thread: str = ""
    begins: float = 0.0  # seconds after EPOCH
    pause: float = 0.01  # between two events
    #: Before the event of this number a cancel is accepted.
    cancel_before: int | None = None
    inputs: list[tuple[str, str]] = field(default_factory=list)
    #: Bodies that were looked at, by the number of events at that time.
    looks: list[int] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    messages: list[Record] | None = None

    @property
    def key(self) -> str:
        return f"key-{self.name}"

    @property
    def thread_id(self) -> str:
        return self.thread or f"thread-{self.name}"

    def at(self, seq: int) -> float:
        """Return when the event of this number is written."""
        return EPOCH + self.begins + 1 + seq * self.pause

    def lines(self) -> list[str]:
        return [
            json.dumps(
                {"seq": seq, "type": kind, "data": data, "created_at": wire(self.at(seq))},
                separators=(",", ":"),
            )
            for seq, (kind, data) in enumerate(self.events, 1)
        ]

    def body_at(self, seq: int) -> Record:
        """Return the run's body when it had this number of events."""
        events = self.events[:seq]
        kind, data = events[-1] if events else ("", {})
        status = {
            "run.completed": "completed",
            "run.failed": "failed",
            "run.cancelled": "cancelled",
            "run.waiting_for_input": "waiting_for_input",
        }.get(kind, "running")
        ended = status in ("completed", "failed", "cancelled")
        phases = {"running": "executing", "waiting_for_input": "waiting"}
        claims = [k for k, _ in events if k in ("run.started", "run.resumed")]
        nothing = {"usage": usage(0, 0), "cost_usd": 0.0}
        return {
            "run_id": self.name,
            "org_id": "org",
            "thread_id": self.thread_id,
            "status": status,
            "phase": phases.get(status, "finished"),
            "attempt": len(claims) - sum(d.get("reason") == "input" for _, d in events),
            "last_seq": seq,
            "created_at": wire(EPOCH + self.begins),
            "started_at": wire(self.at(1)) if claims else None,
            **NEVER,
            **({f"{status}_at": wire(self.at(seq))} if ended else {}),
            "waiting_ms": 0,
            "pending_input": data if status == "waiting_for_input" else None,
            "error": data["error"] if status == "failed" else None,
            **({k: data[k] for k in nothing} if ended else nothing),
        }

    def answer(self) -> list[Record]:
        """Return what the thread has of it in the end."""
        if self.messages is not None:
            return self.messages
        text, partial = "", self.events[-1][0] != "run.completed"
        for kind, data in self.events:
            if kind == "message.delta":
                text += data["content"]
            elif kind == "message.reset" or (kind == "message.completed" and partial):
                text = ""
            elif kind == "message.completed":
                text = data["content"]
                last = text
        if not partial:
            text = last
        message = {"run_id": self.name, "role": "assistant", "content": text, "partial": partial}
        return [message] if text else []


@dataclass
class Tale:
    """All that a load has done."""

    runs: dict[str, Told]
    effects: list[str]
    foreign: list[Record]
    faults: list[Record]
    requests: list[Record]

    def render(self, rng: random.Random | None = None) -> list[Record]:
        """Render the journal; a different one for each `rng`, of the same runs."""
        rng = rng or random.Random(1)
        entries: list[Record] = [*self.faults, *self.requests]
        for run in self.runs.values():
            entries += _accepted(run, rng)
            entries += _doings(run)
            for follower in range(2):
                entries += _followed(run, f"{run.name}-{follower}", rng)
            entries += _last_look(run)
        end = max(entry["at"] for entry in entries) + 1
        by_thread: dict[str, list[Told]] = {}
        for run in self.runs.values():
            by_thread.setdefault(run.thread_id, []).append(run)
        for thread_id, runs in by_thread.items():
            mine = {"run_id": None, "role": "user", "content": "hello", "partial": False}
            body = [mine, *(message for run in runs for message in run.answer())]
            entries.append({"at": end, "kind": "messages", "thread_id": thread_id, "body": body})
        entries += [{"at": end, "kind": "foreign", **record} for record in self.foreign]
        entries += [{"at": end, "kind": "effect", "key": key} for key in self.effects]
        return sorted(entries, key=lambda entry: float(entry["at"]))


def _accepted(run: Told, rng: random.Random) -> list[Record]:
    entries = []
    for replayed in (False, True)[: rng.choice((1, 2))]:
        at = EPOCH + run.begins + 0.01 * (1 + replayed)
        entries.append(post(at, status=201))
        entries.append(
            {
                "at": at,
                "kind": "accepted",
                "run_id": run.name,
                "thread_id": run.thread_id,
                "key": run.key,
                "replayed": replayed,
                "org": "a",
                "expect": run.expect,
            }
        )
    return entries


def _doings(run: Told) -> list[Record]:
    entries: list[Record] = []
    if run.cancel_before is not None:
        at = run.at(run.cancel_before) - run.pause / 2
        entries.append({"at": at, "kind": "cancel_accepted", "run_id": run.name})
    for request_id, content in run.inputs:
        entries.append(
            {
                "at": EPOCH + run.begins + 2,
                "kind": "input_accepted",
                "run_id": run.name,
                "request_id": request_id,
                "content": content,
            }
        )
    for seq in run.looks:
        at = run.at(seq) + run.pause / 2
        body = run.body_at(seq)
        entries.append({"at": at, "kind": "run", "seconds": 0, "run_id": run.name, "body": body})
    return entries


def _followed(run: Told, follower: str, rng: random.Random) -> list[Record]:
    """Return all events over as many connections as the dice choose, at least two."""
    lines, entries = run.lines(), []
    cuts = {rng.randrange(1, len(lines)) for _ in range(rng.randint(1, 5))} if lines[1:] else {0}
    cursor = 0
    # Who comes back may have handled less than was sent, and then reads it again.
    for number, end in enumerate([*sorted(cuts), len(lines)]):
        stream = f"{follower}.{number}"
        of = {"run_id": run.name, "stream": stream}
        at = run.at(cursor) + 0.001
        opened = {"after_seq": cursor, "status": 200, "url": rng.choice(URLS), "follower": follower}
        entries.append({"at": at, "kind": "stream_open", **of, **opened})
        for seq in range(cursor + 1, end + 1):
            frame = {"id": seq, "line": lines[seq - 1]}
            entries.append({"at": run.at(seq) + 0.001, "kind": "event", **of, **frame})
        why = "ended" if end == len(lines) else "cut"
        entries.append({"at": run.at(end) + 0.002, "kind": "stream_end", **of, "why": why})
        cursor = end - (rng.random() < 0.3 and end > 1)
    return entries


def _last_look(run: Told) -> list[Record]:
    last = len(run.events)
    at = run.at(last) + 0.1
    of = {"at": at, "run_id": run.name}
    body = {**run.body_at(last), **run.body}
    ended = {"last_event_id": last, "status": 204}
    return [
        {**of, "kind": "run", "seconds": 0.01, "body": body},
        *({**of, "kind": "replay", "url": url, "lines": run.lines()} for url in URLS),
        {**of, "kind": "reconnect_after_end", **ended},
    ]


# ---- records


def fault(seconds: float, name: str, phase: str) -> Record:
    return {"at": EPOCH + seconds, "kind": "fault", "name": name, "phase": phase}


def request(at: float, kind: str = "answer") -> Record:
    return {
        "at": at,
        "kind": kind,
        "method": "POST",
        "path": "/v1/threads/{id}/runs",
        "seconds": 0.02,
    }


def post(at: float, *, status: int, code: str = "", retry_after: str | None = None) -> Record:
    return {**request(at), "status": status, "code": code, "retry_after": retry_after}


def wire(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def of_kind(journal: Iterable[Record], kind: str, **fields: Any) -> list[Record]:
    """Return the records of a kind with these fields."""
    return [
        record
        for record in journal
        if record["kind"] == kind and all(record.get(k) == v for k, v in fields.items())
    ]
