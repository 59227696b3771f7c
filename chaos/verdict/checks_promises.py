"""I5 to I7, I11 to I13 and I15: what the service promised, and whether it kept it."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from chaos.verdict.evidence import Event, Evidence, Look, Run, moment
from chaos.verdict.violations import Allow, Violation

#: Times on the wire are whole milliseconds.
ROUNDING = 0.002
WAITING = "run.waiting_for_input"
RECEIVED = "run.input_received"


def check_promises(evidence: Evidence, allow: Allow) -> Iterator[Violation]:
    """Check all promises, for each run, and for keys, threads and strangers."""
    for run in evidence.runs.values():
        yield from _reaches_an_end(run, evidence, allow)
        yield from _cancel(run, evidence, allow)
        yield from _inputs(run)
        yield from _waiting(run)
        for look in run.looks:
            yield from _pending_input(run, look)
    yield from _keys(evidence)
    if not allow.unknown_runs:
        yield from _unknown_runs(evidence)
    yield from _threads(evidence, allow)
    yield from _strangers(evidence)


# ---- I5 ------------------------------------------------------------------------------


def _reaches_an_end(run: Run, evidence: Evidence, allow: Allow) -> Iterator[Violation]:
    if not run.accepted:
        return
    last = run.last_look
    if last is None:
        yield Violation("I5", run.id, "accepted, and nobody could look at it in the end")
        return
    if not last.is_terminal:
        yield Violation("I5", run.id, f"accepted, and in the end {last.status}")
        return
    statuses = set(run.expect.get("statuses") or ())
    if run.cancels:
        statuses.add("cancelled")
    error = last.body.get("error")
    if statuses and last.status not in statuses and not evidence.is_unlucky(run, error):
        what = f"{last.status}, not {' or '.join(sorted(statuses))}: {error}"
        yield Violation("I5", run.id, what)
    created, ended = moment(last.body.get("created_at")), last.ended_at
    if allow.end is not None and created is not None and ended is not None:
        waited = last.body.get("waiting_ms")
        seconds = ended - created - (waited if isinstance(waited, int | float) else 0) / 1000
        if seconds > allow.end:
            yield Violation("I5", run.id, f"it took {seconds:.1f} s, not {allow.end:g}")


# ---- I6 ------------------------------------------------------------------------------


def _keys(evidence: Evidence) -> Iterator[Violation]:
    runs_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    made: dict[tuple[str, str], int] = defaultdict(int)
    for run in evidence.runs.values():
        keys = set()
        for record in run.accepted:
            key = str(record.get("key") or "")
            if not key:
                continue
            # A key means something only at one path, which is the thread's.
            scope = (str(record.get("thread_id")), key)
            keys.add(scope)
            runs_of[scope].add(run.id)
            made[scope] += not record.get("replayed")
        if len(keys) > 1:
            yield Violation("I6", run.id, f"one run for the keys {sorted(keys)}")
    for (_, key), found in runs_of.items():
        if len(found) > 1:
            yield Violation("I6", None, f"the key {key} made the runs {sorted(found)}")
    for (_, key), times in made.items():
        if times > 1:
            yield Violation("I6", None, f"the key {key} was taken for a new one {times} times")


def _unknown_runs(evidence: Evidence) -> Iterator[Violation]:
    """Find runs in our threads that no response named: a repeated request has made them."""
    known = {run.id for run in evidence.runs.values() if run.accepted}
    if any(str(answer.get("path")).endswith(":retry") for answer in evidence.answers):
        return
    for thread_id in evidence.threads:
        for message in evidence.messages(thread_id, 0) or ():
            run_id = message.get("run_id")
            if run_id is not None and run_id not in known:
                yield Violation("I6", str(run_id), f"a run of {thread_id} that no answer named")


# ---- I7 ------------------------------------------------------------------------------


def _threads(evidence: Evidence, allow: Allow) -> Iterator[Violation]:
    for thread_id, runs in evidence.runs_by_thread().items():
        if len(runs) < 2:
            continue
        for spans, slack in (
            ([_active(run) for run in runs], allow.overlap),
            ([_executed(run) for run in runs], 0.0),
        ):
            known = sorted(span for span in spans if span is not None)
            for (_, ended, one), (began, _, other) in pairwise(known):
                if began + slack < ended:
                    what = f"active in {thread_id} before {one} had ended"
                    yield Violation("I7", other, what)


Span = tuple[float, float, str]


def _active(run: Run) -> Span | None:
    """Return the span from creation to end, by the run's body."""
    last = run.last_look
    created = None if last is None else moment(last.body.get("created_at"))
    if last is None or created is None:
        return None
    return created, last.ended_at or math.inf, run.id


def _executed(run: Run) -> Span | None:
    """Return the span from first claim to end, by the run's events."""
    began = run.events[0].created_at if run.of_type("run.started") else None
    if began is None or run.ended_at is None:
        return None
    return began, run.ended_at, run.id


# ---- I11 -----------------------------------------------------------------------------


def _cancel(run: Run, evidence: Evidence, allow: Allow) -> Iterator[Violation]:
    wished = run.of_type("run.cancel_requested")
    if wished:
        for event in run.events[wished[0].seq :]:
            if event.type not in ("run.cost", "run.cancelled"):
                what = f"{event.type} {event.seq} after run.cancel_requested"
                yield Violation("I11", run.id, what)
    if not run.cancels or run.status is None:
        return
    accepted_at = min(run.cancels)
    ended_at = run.ended_at
    if ended_at is None:
        yield Violation("I11", run.id, "a cancel was accepted, and it has not ended")
        return
    late = ended_at - accepted_at
    if run.status != "cancelled" and late > ROUNDING:
        what = f"{run.status} {late:.3f} s after a cancel was accepted"
        yield Violation("I11", run.id, what)
    disturbed = evidence.disturbances.meets(accepted_at, accepted_at + allow.cancel, allow.recovery)
    bound = allow.cancel_in_fault if disturbed else allow.cancel
    if late > bound:
        what = f"it ended {late:.1f} s after an accepted cancel, not {bound:g}"
        yield Violation("I11", run.id, what)


# ---- I12 -----------------------------------------------------------------------------


def _inputs(run: Run) -> Iterator[Violation]:
    accepted: dict[str, set[str]] = defaultdict(set)
    for record in run.inputs:
        accepted[str(record.get("request_id"))].add(str(record.get("content")))
    for request, contents in accepted.items():
        if len(contents) > 1:
            what = f"two answers to {request} were accepted: {sorted(contents)}"
            yield Violation("I12", run.id, what)
    asked: list[str] = []
    received: dict[str, str] = {}
    for event in run.of_type(WAITING, RECEIVED):
        request, content = str(event.data.get("request_id")), str(event.data.get("content"))
        if event.type == WAITING:
            asked.append(request)
            continue
        if request in received:
            yield Violation("I12", run.id, f"the answer to {request} was used twice")
        elif not asked or request != asked[-1]:
            what = f"an answer to {request} where {asked[-1:]} was asked"
            yield Violation("I12", run.id, what)
        if accepted.get(request) and content not in accepted[request]:
            what = f"{content!r:.100} was used for {request}, and never accepted"
            yield Violation("I12", run.id, what)
        received.setdefault(request, content)
    yield from _tools_heard(run, received)
    if run.is_whole and run.status == "completed":
        for request in {*accepted, *asked} - received.keys():
            yield Violation("I12", run.id, f"completed without an answer to {request}")
        asks = run.expect.get("asks")
        if isinstance(asks, int) and len(asked) != asks:
            yield Violation("I12", run.id, f"it asked {len(asked)} times, not {asks}")


def _tools_heard(run: Run, received: Mapping[str, str]) -> Iterator[Violation]:
    """Check that the result of a question is the person's answer."""
    questions = {
        str(event.data["tool_call_id"]): str(event.data.get("request_id"))
        for event in run.of_type(WAITING)
        if event.data.get("kind") == "question" and event.data.get("tool_call_id")
    }
    for result in run.of_type("tool.result"):
        request = questions.get(str(result.data.get("tool_call_id")))
        if request is not None and result.data.get("output") != received.get(request):
            what = f"the model got {result.data.get('output')!r:.100} for {request}"
            yield Violation("I12", run.id, what)


# ---- I13 -----------------------------------------------------------------------------


def _waiting(run: Run) -> Iterator[Violation]:
    """Check that nothing happens between the question and the claim that brings the answer."""
    for event, after in pairwise(run.events):
        is_answered = after.type == "run.resumed" and after.data.get("reason") == "input"
        if event.type == WAITING and not is_answered and not after.is_terminal:
            yield Violation("I13", run.id, f"{after.type} {after.seq} while it was waiting")
        if is_answered and event.type != WAITING:
            yield Violation("I13", run.id, f"event {after.seq} resumes what was not waiting")
        if event.type == "run.resumed" and event.data.get("reason") == "input":
            if after.type != RECEIVED:
                what = f"resumed for an answer at event {event.seq}, which does not follow"
                yield Violation("I12", run.id, what)
        elif after.type == RECEIVED and event.type != RECEIVED:
            yield Violation("I12", run.id, f"an answer at event {after.seq} without its claim")


def _pending_input(run: Run, look: Look) -> Iterator[Violation]:
    pending = look.body.get("pending_input")
    if look.status != "waiting_for_input":
        if pending is not None:
            yield Violation("I13", run.id, f"{look.status} with a pending input")
        return
    last: Event | None = run.by_seq.get(look.last_seq)
    if last is None:
        return
    request: Any = pending.get("request_id") if isinstance(pending, Mapping) else None
    if last.type != WAITING or request != last.data.get("request_id"):
        what = f"it waits for {request}, its last event is {last.type} {last.data!r:.100}"
        yield Violation("I13", run.id, what)


# ---- I15 -----------------------------------------------------------------------------


def _strangers(evidence: Evidence) -> Iterator[Violation]:
    for record in evidence.foreign:
        path, status, body = record.get("path"), record.get("status"), record.get("body")
        if status != 404:
            yield Violation("I15", None, f"{path}: {status} for a stranger: {body!r:.200}")
        elif (status, body) != (record.get("unknown_status"), record.get("unknown_body")):
            unknown = f"{record.get('unknown_status')} {record.get('unknown_body')!r:.100}"
            yield Violation("I15", None, f"{path}: {body!r:.100} is not that of {unknown}")
