"""I8 to I10, I17 and I18: what a run did, step by step, and that it did nothing twice."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise, zip_longest
from typing import Any

from chaos.verdict.evidence import (
    CRASHED,
    LOSSES_OF_A_POISON_RUN,
    TEXT,
    Event,
    Evidence,
    Run,
    whole,
)
from chaos.verdict.violations import Violation

TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens")
RECOVERY_SECONDS = 20.0

#: What may follow a claim while text of an earlier one is still open: no more of the work.
_WORK = {*TEXT, "message.completed", "tool.call", "tool.result", "run.waiting_for_input"}


def check_steps(evidence: Evidence) -> Iterator[Violation]:
    """Check all steps, for each run."""
    for run in evidence.runs.values():
        yield from _attempts(run)
        yield from _texts(run)
        yield from _void_text(run)
        yield from _turns(run)
        yield from _calls(run)
        yield from _effects_of_calls(run, evidence.effects)
        yield from _expected_effects(run, evidence.effects)
        yield from _poison(run, evidence)
        yield from _usage(run)
    for key, times in evidence.effects.items():
        if times > 1:
            yield Violation("I9", None, f"the effect {key} happened {times} times")


# ---- I8 ------------------------------------------------------------------------------


def _attempts(run: Run) -> Iterator[Violation]:
    number = 1
    for event in run.of_type("run.resumed"):
        number += event.data.get("reason") == "worker_lost"
        if event.data.get("attempt") != number:
            what = f"attempt {number} at event {event.seq} is called {event.data.get('attempt')}"
            yield Violation("I8", run.id, what)


def _texts(run: Run) -> Iterator[Violation]:
    """Check that pieces that are not void make the text of their turn, and turns the whole text."""
    pieces: dict[int, str] = {}
    for event in run.events:
        if event.type == "message.delta":
            pieces[event.seq] = str(event.data.get("content"))
        elif event.type == "message.reset":
            first = whole(event.data.get("from_seq")) or 0
            pieces = {seq: piece for seq, piece in pieces.items() if seq < first}
        elif event.type == "message.completed":
            shown, said = "".join(pieces.values()), str(event.data.get("content"))
            if shown != said:
                what = f"the turn at event {event.seq} shows {_differ(shown, said)}"
                yield Violation("I8", run.id, what)
            pieces.clear()
    expected = run.expect.get("text")
    if expected is not None and run.is_whole and run.events[-1].type == "run.completed":
        text = "".join(str(e.data.get("content")) for e in run.of_type("message.completed"))
        if text != expected:
            yield Violation("I8", run.id, f"the whole text is {_differ(text, expected)}")


def _differ(text: str, expected: str) -> str:
    same = 0
    for one, other in zip(text, expected, strict=False):
        if one != other:
            break
        same += 1
    start = max(0, same - 20)
    return (
        f"{len(text)} characters, not {len(expected)}; from {start} on:"
        f" {text[start : start + 60]!r}, not {expected[start : start + 60]!r}"
    )


# ---- I10 -----------------------------------------------------------------------------


def _void_text(run: Run) -> Iterator[Violation]:
    """Check that unfinished text of a lost claim, and nothing else, is void before work resumes."""
    open_from: int | None = None
    since_claim: Event | None = None  # a claim that has found open text
    for event in run.events:
        if since_claim is not None and event.type in _WORK:
            what = f"{event.type} {event.seq} while the text from {open_from} is still open"
            yield Violation("I10", run.id, what)
            since_claim = None
        if event.type in TEXT:
            open_from = event.seq if open_from is None else open_from
        elif event.type == "message.reset":
            if event.data.get("from_seq") != open_from:
                what = (
                    f"event {event.seq} makes the text from {event.data.get('from_seq')} void,"
                    f" open is {open_from}"
                )
                yield Violation("I10", run.id, what)
            if since_claim is not None and event.data.get("reason") != "resumed":
                what = f"the text is void because of {event.data.get('reason')} after a claim"
                yield Violation("I10", run.id, what)
            open_from = since_claim = None
        elif event.type == "message.completed":
            open_from = since_claim = None
        elif event.type == "run.resumed" and open_from is not None:
            since_claim = event


def _turns(run: Run) -> Iterator[Violation]:
    """Check that a turn comes once, whole, and not before the calls of the one before are done."""
    open_calls: set[str] = set()
    had_last_word = False
    for event, after in zip_longest(run.events, run.events[1:]):
        assert event is not None
        if event.type == "message.completed":
            if open_calls:
                what = f"a turn at event {event.seq}, the calls {sorted(open_calls)} open"
                yield Violation("I10", run.id, what)
            if had_last_word:
                yield Violation("I10", run.id, f"a turn at event {event.seq} after the last word")
            had_last_word = after is not None and after.type != "tool.call"
        elif event.type == "tool.call":
            open_calls.add(_call_id(event))
        elif event.type == "tool.result":
            open_calls.discard(_call_id(event))
        elif event.type == "run.completed" and (open_calls or not had_last_word):
            yield Violation("I10", run.id, "completed before its last word")
        begins = event.type in ("message.completed", "tool.call")
        if begins and after is not None and after.type not in ("tool.call", "run.cost"):
            what = f"{event.type} {event.seq} and then {after.type}: the turn is not whole"
            yield Violation("I10", run.id, what)
    for name, kind in (("message_id", "message.completed"), ("tool_call_id", "tool.call")):
        ids = Counter(str(event.data.get(name)) for event in run.of_type(kind))
        for repeated in (id_ for id_, times in ids.items() if times > 1):
            yield Violation("I10", run.id, f"{kind} twice with the {name} {repeated}")


# ---- I9 ------------------------------------------------------------------------------


def is_unknown(result: Event) -> bool:
    """Return whether the model reads that the outcome of the call is unknown."""
    output = str(result.data.get("output"))
    return bool(result.data.get("is_error")) and "outcome" in output and "unknown" in output


def _calls(run: Run) -> Iterator[Violation]:
    """Check for one result per call, in their order; unknown only where a worker was lost."""
    due: list[str] = []
    done: set[str] = set()
    called_at: dict[str, int] = {}
    for event in run.events:
        call = _call_id(event)
        if event.type == "tool.call":
            due.append(call)
            called_at.setdefault(call, event.seq)
        elif event.type == "tool.result":
            if call in done:
                yield Violation("I9", run.id, f"a second result of the call {call}")
            elif call not in due:
                yield Violation("I9", run.id, f"a result of {call}, which was not called")
            else:
                if call != due[0]:
                    yield Violation("I9", run.id, f"the result of {call} before that of {due[0]}")
                due.remove(call)
            done.add(call)
            if is_unknown(event) and not _lost_between(run, called_at.get(call, 0), event.seq):
                yield Violation("I9", run.id, f"the outcome of {call} is unknown, no worker lost")
        elif event.type == "run.completed" and due:
            yield Violation("I9", run.id, f"completed without results of {due}")


def _lost_between(run: Run, first: int, last: int) -> bool:
    return any(
        first < event.seq < last and event.data.get("reason") == "worker_lost"
        for event in run.of_type("run.resumed")
    )


def _effects_of_calls(run: Run, effects: Counter[str]) -> Iterator[Violation]:
    """Check that a result without error means that the line is there."""
    results = {_call_id(e): e for e in run.of_type("tool.result")}
    for call in run.of_type("tool.call"):
        line = _line_of(call)
        result = results.get(_call_id(call))
        if line is None or result is None or result.data.get("is_error"):
            continue
        if effects and effects[line] == 0:
            yield Violation("I9", run.id, f"the call for {line} succeeded without an effect")


def _expected_effects(run: Run, effects: Counter[str]) -> Iterator[Violation]:
    if not run.is_whole or run.events[-1].type != "run.completed":
        return
    unknown = {_call_id(e) for e in run.of_type("tool.result") if is_unknown(e)}
    excused = {_line_of(call) for call in run.of_type("tool.call") if _call_id(call) in unknown}
    for key in run.expect.get("effects") or ():
        if effects[str(key)] == 0 and str(key) not in excused:
            yield Violation("I9", run.id, f"completed, and the effect {key} never happened")


def _call_id(event: Event) -> str:
    return str(event.data.get("tool_call_id"))


def _line_of(call: Event) -> str | None:
    arguments = call.data.get("arguments")
    if not isinstance(arguments, Mapping) or not isinstance(arguments.get("line"), str):
        return None
    return str(arguments["line"])


# ---- I17 -----------------------------------------------------------------------------


def _poison(run: Run, evidence: Evidence) -> Iterator[Violation]:
    told = [look.body.get("error") for look in run.looks]
    told += [event.data.get("error") for event in run.of_type("run.failed")]
    codes = [error.get("code") for error in told if isinstance(error, Mapping)]
    if not run.expect.get("poison"):
        if CRASHED in codes and not evidence.is_unlucky(run, {"code": CRASHED}):
            yield Violation("I17", run.id, "given up as crashed, and it harms nobody")
        return
    if run.is_whole and CRASHED not in codes:
        yield Violation("I17", run.id, f"it kills its workers, and ended with {codes}")
    if not run.is_whole or CRASHED not in codes:
        return
    losses = sum(e.data.get("reason") == "worker_lost" for e in run.of_type("run.resumed"))
    began, ended = run.events[0].created_at, run.ended_at
    # Who cannot renew because Postgres is away is lost too, and that is no crash of the run.
    excused = evidence.faults.meets(began or 0, ended or began or 0, RECOVERY_SECONDS, "postgres")
    if losses < LOSSES_OF_A_POISON_RUN or (losses > LOSSES_OF_A_POISON_RUN and not excused):
        yield Violation("I17", run.id, f"given up after {losses + 1} lost workers, not after 3")


# ---- I18 -----------------------------------------------------------------------------


def _usage(run: Run) -> Iterator[Violation]:
    costs = run.of_type("run.cost")
    for before, after in pairwise(costs):
        if _below(after.data.get("usage"), before.data.get("usage")) or (
            _number(after.data.get("cost_usd")) < _number(before.data.get("cost_usd"))
        ):
            yield Violation("I18", run.id, f"the cost fell at event {after.seq}")
    turn_usages = [event.data.get("usage") for event in run.of_type("message.completed")]
    told = [_tokens(usage) for usage in turn_usages]
    total = tuple(map(sum, zip(*told, strict=True))) if told else (0, 0, 0)
    end = run.terminal
    if end is None or not run.is_whole:
        return
    used = _tokens(end.data.get("usage"))
    if any(one < other for one, other in zip(used, total, strict=True)):
        yield Violation("I18", run.id, f"used {used}, and its turns used {total}")
    elif used != total and _is_undisturbed(run, end):
        yield Violation("I18", run.id, f"used {used}, and its turns used only {total}")
    if costs and (
        costs[-1].data.get("usage") != end.data.get("usage")
        or costs[-1].data.get("cost_usd") != end.data.get("cost_usd")
    ):
        yield Violation("I18", run.id, "the last run.cost is not what the end says")
    look = run.last_look
    if look is not None and look.is_terminal:
        for name in ("usage", "cost_usd"):
            if look.body.get(name) != end.data.get(name):
                what = f"{name} is {look.body.get(name)}, the end says {end.data.get(name)}"
                yield Violation("I18", run.id, what)


def _is_undisturbed(run: Run, end: Event) -> bool:
    """Return whether no model call was made twice or broken off.

    A broken-off call has an estimated usage, also where no text of it was numbered.
    """
    return (
        end.type == "run.completed"
        and not run.of_type("message.reset")
        and not any(e.data.get("reason") != "input" for e in run.of_type("run.resumed"))
        and (end.data.get("usage") or {}).get("source") == "reported"
    )


def _tokens(usage: Any) -> tuple[int, ...]:
    usage = usage if isinstance(usage, Mapping) else {}
    return tuple(whole(usage.get(name)) or 0 for name in TOKENS)


def _below(usage: Any, other: Any) -> bool:
    pairs = zip(_tokens(usage), _tokens(other), strict=True)
    return any(one < before for one, before in pairs)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
