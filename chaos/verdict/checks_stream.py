"""I1 to I4 and I19: the numbers, the bytes, the end and the status of a run."""

from collections.abc import Iterator
from typing import Any

from chaos.verdict.evidence import (
    TERMINAL_STATUS,
    Event,
    Evidence,
    Look,
    Run,
    Stream,
    decode,
    moment,
    whole,
)
from chaos.verdict.violations import Violation

PHASES = {
    "running": {"queued", "executing", "cancelling"},
    "waiting_for_input": {"waiting"},
    "completed": {"finished"},
    "failed": {"finished"},
    "cancelled": {"finished"},
}
#: What never changes from the run's creation on.
FIXED = ("run_id", "org_id", "thread_id", "persona_id", "route_id", "model", "created_at")


def check_streams(evidence: Evidence) -> Iterator[Violation]:
    """Check all of the stream, for each run."""
    for run in evidence.runs.values():
        yield from _numbers(run)
        yield from _replays(run)
        yield from _end(run)
        yield from _message_of_the_end(run, evidence)
        yield from _statuses(run)
        yield from _after_the_end(run)


# ---- I1 ------------------------------------------------------------------------------


def _numbers(run: Run) -> Iterator[Violation]:
    for line in run.unreadable[:3]:
        yield Violation("I1", run.id, f"a line that is no event: {line[:200]}")
    for seq, one, other in run.disputed:
        yield Violation("I1", run.id, f"event {seq} has two versions: {one[:200]} ≠ {other[:200]}")
    for stream in run.streams.values():
        yield from _numbers_of_stream(run, stream)
    yield from _numbers_of_followers(run)


def _numbers_of_stream(run: Run, stream: Stream) -> Iterator[Violation]:
    expected = None if stream.after_seq is None else stream.after_seq + 1
    for seq, line in stream.frames:
        event = decode(line)
        if event is not None and event.seq != seq:
            yield Violation("I1", run.id, f"the frame {seq} has the event {event.seq}")
        if expected is not None and seq != expected:
            kind = "gap" if seq is not None and seq > expected else "repeat"
            what = f"{kind} on stream {stream.name}: {seq} where {expected} was due"
            yield Violation("I1", run.id, what)
        expected = None if seq is None else seq + 1


def _numbers_of_followers(run: Run) -> Iterator[Violation]:
    seen: dict[str, int] = {}
    for stream in sorted(run.streams.values(), key=lambda stream: stream.opened_at):
        if stream.follower is None:
            continue
        had = seen.get(stream.follower, 0)
        if stream.after_seq is not None and stream.after_seq > had:
            what = f"{stream.follower} had {had} and asked for what is after {stream.after_seq}"
            yield Violation("I1", run.id, what)
        seen[stream.follower] = max([had, *(seq for seq, _ in stream.frames if seq is not None)])


# ---- I2 ------------------------------------------------------------------------------


def _replays(run: Run) -> Iterator[Violation]:
    ended = next((look for look in run.looks if look.is_terminal), None)
    for replay in run.replays:
        seqs = [event.seq if (event := decode(line)) else None for line in replay.lines]
        if seqs != list(range(1, len(seqs) + 1)):
            what = f"the replay from {replay.url} is numbered {_short(seqs)}"
            yield Violation("I2", run.id, what)
        elif ended is not None and replay.at >= ended.at and len(seqs) != ended.last_seq:
            what = f"the replay from {replay.url} has {len(seqs)} of {ended.last_seq} events"
            yield Violation("I2", run.id, what)
    last = run.last_look
    if last is not None and last.is_terminal:
        beyond = sorted(seq for seq in run.by_seq if not 1 <= seq <= last.last_seq)
        if beyond:
            what = f"last_seq is {last.last_seq}, and somebody saw {_short(beyond)}"
            yield Violation("I2", run.id, what)


# ---- I3 ------------------------------------------------------------------------------


def _end(run: Run) -> Iterator[Violation]:
    terminal = sorted(seq for seq, event in run.by_seq.items() if event.is_terminal)
    if len(terminal) > 1:
        yield Violation("I3", run.id, f"the terminal events are {terminal}")
    if terminal and max(run.by_seq) > terminal[0]:
        what = f"event {max(run.by_seq)} comes after the end, {terminal[0]}"
        yield Violation("I3", run.id, what)
    for look in run.looks:
        yield from _end_in_body(run, look, terminal)
    yield from _last_word(run)


def _end_in_body(run: Run, look: Look, terminal: list[int]) -> Iterator[Violation]:
    dates = {status for status in TERMINAL_STATUS.values() if look.body.get(f"{status}_at")}
    if dates != ({look.status} if look.is_terminal else set()):
        yield Violation("I3", run.id, f"{look.status} with the end dates {sorted(dates)}")
    if not look.is_terminal:
        if terminal and look.last_seq >= terminal[0]:
            what = f"{look.status} at last_seq {look.last_seq}, with the end at {terminal[0]}"
            yield Violation("I3", run.id, what)
        elif terminal and run.by_seq[terminal[0]].at < look.asked_at:
            yield Violation("I3", run.id, f"{look.status} after a client had the terminal event")
        return
    last = run.by_seq.get(look.last_seq)
    if last is None:
        if run.streams or run.replays:
            what = f"{look.status}, and nobody saw its last event, {look.last_seq}"
            yield Violation("I3", run.id, what)
    elif TERMINAL_STATUS.get(last.type) != look.status:
        yield Violation("I3", run.id, f"{look.status} with the last event {last.type}")


def _last_word(run: Run) -> Iterator[Violation]:
    end = run.terminal
    if end is None or end.type != "run.completed":
        return
    turns = run.of_type("message.completed")
    message_id = (
        turns[-1].data.get("message_id") if turns and turns[-1].data.get("content") else None
    )
    if not turns or end.data.get("message_id") != message_id:
        what = f"completed with the message {end.data.get('message_id')}, not {message_id}"
        yield Violation("I3", run.id, what)


def _message_of_the_end(run: Run, evidence: Evidence) -> Iterator[Violation]:
    """Check that the thread's message appears with the end: whole, or partial if not completed."""
    ended = next((look for look in run.looks if look.is_terminal), None)
    messages = None if ended is None else evidence.messages(run.thread_id, ended.at)
    if messages is None or run.terminal is None or not run.is_whole:
        return
    kept = [
        (message.get("content"), message.get("partial"))
        for message in messages
        if message.get("run_id") == run.id and message.get("role") == "assistant"
    ]
    completed = run.terminal.type == "run.completed"
    text = _last_text(run) if completed else _open_text(run)
    expected = [(text, not completed)] if text else []
    superseded = not kept and any(
        str(answer.get("path")).endswith(":retry") for answer in evidence.answers
    )
    if kept != expected and not superseded:
        what = f"the thread has the messages {kept!r:.300} of it, not {expected!r:.300}"
        yield Violation("I3", run.id, what)


def _last_text(run: Run) -> str:
    turns = run.of_type("message.completed")
    return str(turns[-1].data.get("content")) if turns else ""


def _open_text(run: Run) -> str:
    text = ""
    for event in run.events:
        if event.type in ("message.completed", "message.reset"):
            text = ""
        elif event.type == "message.delta":
            text += str(event.data.get("content"))
    return text


# ---- I4 ------------------------------------------------------------------------------


def _statuses(run: Run) -> Iterator[Violation]:
    for look in run.looks:
        phase = look.body.get("phase")
        if look.status not in PHASES:
            yield Violation("I4", run.id, f"the status {look.status}")
        elif phase is not None and phase not in PHASES[look.status]:
            yield Violation("I4", run.id, f"{look.status} in the phase {phase}")
        attempts = sum(_begins_attempt(e) for e in run.events if e.seq <= look.last_seq)
        attempt = whole(look.body.get("attempt"))
        if attempt is not None and len(run.events) >= look.last_seq and attempt != attempts:
            what = f"attempt {attempt} instead of {attempts} up to event {look.last_seq}"
            yield Violation("I8", run.id, what)
    for i, before in enumerate(run.looks):
        after = next((look for look in run.looks[i + 1 :] if look.asked_at >= before.at), None)
        if after is not None:
            yield from _moves(run, before, after)
    # Once a body is terminal, all later ones are the same, whenever they were asked for.
    final = [look.body for look in run.looks if look.is_terminal]
    for body in final[1:]:
        if body != final[0]:
            yield Violation("I4", run.id, f"the end has changed: {_changes(final[0], body)}")
    yield from _graph(run)


def _begins_attempt(event: Event) -> bool:
    return event.type == "run.started" or event.data.get("reason") == "worker_lost"


def _moves(run: Run, before: Look, after: Look) -> Iterator[Violation]:
    old, new = before.body, after.body
    if before.is_terminal and not after.is_terminal:
        yield Violation("I4", run.id, f"{before.status} became {after.status}")
    if old.get("phase") == "cancelling" and new.get("phase") not in ("cancelling", "finished"):
        yield Violation("I4", run.id, f"cancelling became {new.get('phase')}")
    for name in FIXED:
        if old.get(name) != new.get(name):
            yield Violation("I4", run.id, f"{name} has changed: {_changes(old, new)}")
    for name in ("attempt", "last_seq"):
        if (whole(old.get(name)) or 0) > (whole(new.get(name)) or 0):
            yield Violation("I4", run.id, f"{name} fell from {old.get(name)} to {new.get(name)}")
    started = moment(old.get("started_at"))
    if started is not None and started != moment(new.get("started_at")):
        yield Violation("I4", run.id, "started_at has changed")


def _graph(run: Run) -> Iterator[Violation]:
    """Check that a run begins with its first claim, or ends before one."""
    if run.events and run.events[0].type != "run.started" and not run.events[0].is_terminal:
        yield Violation("I4", run.id, f"it begins with {run.events[0].type}")
    for event in run.events[1:]:
        if event.type == "run.started":
            yield Violation("I4", run.id, f"it begins again at event {event.seq}")


# ---- I19 -----------------------------------------------------------------------------


def _after_the_end(run: Run) -> Iterator[Violation]:
    for record in run.reconnects:
        if record.get("status") != 204:
            what = f"{record.get('status')} after the last event, {record.get('last_event_id')}"
            yield Violation("I19", run.id, what)


def _changes(old: Any, new: Any) -> str:
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(f"{name} {old.get(name)!r} → {new.get(name)!r}" for name in names)[:300]


def _short(seqs: list[Any]) -> str:
    return repr(seqs) if len(seqs) <= 20 else f"{seqs[:10]!r} … {seqs[-10:]!r}"
