"""Replies by AG-UI that are sent again, alone or with the new message that came with them."""

import re
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from arkloop.shared.events.types import ToolCallRequested, ToolResult
from arkloop.shared.ids import new_id
from arkloop.shared.runs import pending_calls, sweep
from arkloop.shared.storage.tables.runs import inputs
from tests.api.protocols.test_agui_runs import (
    LATER,
    SAID,
    all_runs,
    asking,
    events_of,
    first_cursor,
    newest,
    result,
    send,
    turn,
)
from tests.api.protocols.test_agui_threads import answered
from tests.clients import User
from tests.stored_runs import StoredRuns

BOTH = pytest.mark.parametrize("status", ["cancelled", "resolved"])
MORE = {"id": "m8", "role": "user", "content": "And then?"}
EARLIER = {"id": "m0", "role": "user", "content": "First"}


def questioning(alice: User, stored: StoredRuns, status: str) -> tuple[UUID, list[dict[str, Any]]]:
    """Create a run that has asked a question; returns it and a reply to that."""
    send(alice, SAID).close()
    run_id, request_id = newest(stored), new_id()
    stored.park(stored.held(run_id), request_id)
    payload = {"payload": "Rome"} if status == "resolved" else {}
    return run_id, [{"interruptId": str(request_id), "status": status, **payload}]


def test_replies_to_a_run_come_with_the_run_id_of_its_message(
    alice: User, stored: StoredRuns
) -> None:
    """CopilotKit sends no others: each reply is a request of its own, and counts once."""
    send(alice, SAID, run_id="r-1").close()
    run_id, shown = newest(stored), []
    for text in ("Rome", "Oslo"):
        claim = stored.held(run_id)
        stored.park(replace(claim, last_seq=stored.last_seq(run_id)), request_id := new_id())
        entry = {"interruptId": str(request_id), "status": "resolved", "payload": text}
        how = {"run_id": "r-1", "resume": [entry]}
        shown += [first_cursor(send(alice, SAID, **how)) for _ in range(2)]
        entry["payload"] = "Bern"
        refused = events_of(send(alice, SAID, **how))[-1]
        assert ("RUN_ERROR", "idempotency.conflict") == (refused["type"], refused["code"])

    assert [f"{run_id}.{waits}.1" for waits in (1, 1, 2, 2)] == shown
    assert f"{run_id}.0.1" == first_cursor(send(alice, SAID, run_id="r-1"))
    assert [run_id] == all_runs(stored)


@BOTH
def test_a_reply_is_sent_again_though_the_thread_has_other_runs(
    alice: User, stored: StoredRuns, status: str
) -> None:
    """It leads to what follows the reply, while the next run is active, and when that has ended."""
    run_id, resume = questioning(alice, stored, status)
    shown = [first_cursor(send(alice, SAID, resume=resume))]
    stored.finish(stored.held(run_id))
    send(alice, LATER).close()
    shown.append(first_cursor(send(alice, SAID, resume=resume)))
    stored.finish(stored.held(newest(stored)))
    shown.append(first_cursor(send(alice, SAID, resume=resume)))

    assert [f"{run_id}.1.1"] * 3 == shown
    assert 2 == len(all_runs(stored))


@BOTH
def test_a_reply_with_a_message_is_sent_again(alice: User, stored: StoredRuns, status: str) -> None:
    """The message is answered by its run, which waits for its turn or is active."""
    run_id, resume = questioning(alice, stored, status)
    shown = [first_cursor(send(alice, SAID, LATER, resume=resume)) for _ in range(2)]
    if status == "resolved":
        stored.finish(stored.held(run_id), with_followers=True)
    shown.append(first_cursor(send(alice, SAID, LATER, resume=resume)))

    [_, answers] = all_runs(stored)
    assert "queued" == stored.state(answers)
    assert [f"{answers}.0.1" if status == "cancelled" else f"{run_id}.1.1"] * 3 == shown


def test_a_cancel_of_what_is_over_is_sent_again(alice: User, stored: StoredRuns) -> None:
    """Somebody else has replied meanwhile, which refuses no message."""
    run_id, resume = questioning(alice, stored, "cancelled")
    stored.answer(run_id, "Oslo")

    shown = [first_cursor(send(alice, SAID, LATER, resume=resume)) for _ in range(2)]

    [_, answers] = all_runs(stored)
    assert [f"{answers}.0.1"] * 2 == shown


def test_a_cancel_of_what_has_expired_is_sent_again(alice: User, stored: StoredRuns) -> None:
    """The run continues without a reply, and has not ended yet."""
    send(alice, SAID).close()
    run_id, request_id = newest(stored), new_id()
    stored.park(stored.held(run_id), request_id, expires_in=0)
    stored.set(run_id, state="executing", pending_input=None)
    resume = [{"interruptId": str(request_id), "status": "cancelled"}]

    shown = [first_cursor(send(alice, SAID, LATER, resume=resume)) for _ in range(2)]

    [_, answers] = all_runs(stored)
    assert [f"{answers}.0.1"] * 2 == shown


@pytest.mark.parametrize("is_expired", [True, False], ids=["expired", "cancelled"])
def test_a_cancel_of_a_run_that_is_over_is_sent_again(
    alice: User, stored: StoredRuns, is_expired: bool
) -> None:
    """The message is answered by its run, and anew once that has ended, as one sent alone."""
    run_id, resume = questioning(alice, stored, "cancelled")
    if is_expired:
        stored.set(run_id, input_expires_at=func.now())
        sweep.sweep(stored.connections)
    else:
        stored.cancel(run_id)
    shown = [first_cursor(send(alice, SAID, LATER, resume=resume)) for _ in range(2)]
    for _ in range(2):
        stored.finish(stored.held(newest(stored)))
        shown.append(first_cursor(send(alice, SAID, LATER, resume=resume)))

    [asked, first, *again] = all_runs(stored)
    assert ("failed" if is_expired else "cancelled") == stored.state(asked)
    assert [f"{one}.0.1" for one in (first, first, *again)] == shown


def test_a_cancel_of_a_run_that_is_over_is_sent_again_behind_others(
    alice: User, stored: StoredRuns
) -> None:
    """Another page's run has come between."""
    run_id, resume = questioning(alice, stored, "cancelled")
    stored.cancel(run_id)
    shown = [first_cursor(send(alice, SAID, MORE))]
    for _ in range(2):
        stored.finish(stored.held(newest(stored)))
        shown.append(first_cursor(send(alice, SAID, LATER, resume=resume)))

    assert [f"{one}.0.1" for one in all_runs(stored)[1:]] == shown


def test_a_message_before_a_run_is_over_is_not_one_that_came_with_its_cancel(
    alice: User, stored: StoredRuns
) -> None:
    """Another page has sent it behind the run, and it was answered: the reply is refused."""
    send(alice, SAID).close()
    run_id, request_id = newest(stored), new_id()
    claim = stored.held(run_id)
    send(alice, LATER).close()
    stored.park(claim, request_id)
    stored.cancel(run_id)
    stored.finish(stored.held(newest(stored)))
    resume = [{"interruptId": str(request_id), "status": "cancelled"}]

    refused = events_of(send(alice, SAID, LATER, resume=resume))

    assert ("RUN_ERROR", "runs.not_waiting") == (refused[-1]["type"], refused[-1]["code"])
    assert 2 == len(all_runs(stored))


def test_a_message_before_a_cancel_is_not_one_that_came_with_it(
    alice: User, stored: StoredRuns
) -> None:
    """Another page has sent it while the run was active: the reply shows what follows it."""
    send(alice, SAID).close()
    run_id, request_id = newest(stored), new_id()
    claim = stored.held(run_id)
    send(alice, LATER).close()
    stored.park(claim, request_id)
    resume = [{"interruptId": str(request_id), "status": "cancelled"}]

    for _ in range(2):
        assert f"{run_id}.1.1" == first_cursor(send(alice, SAID, LATER, resume=resume))
        assert ["queued", "pending"] == [stored.state(one) for one in all_runs(stored)]


def test_a_cancel_with_a_message_whose_run_has_ended_has_a_new_run(
    alice: User, stored: StoredRuns
) -> None:
    """The message is answered anew, as one that is sent alone."""
    _, resume = questioning(alice, stored, "cancelled")
    send(alice, SAID, LATER, resume=resume).close()
    stored.finish(stored.held(newest(stored)))

    shown = first_cursor(send(alice, SAID, LATER, resume=resume))

    assert 3 == len(all_runs(stored))
    assert f"{newest(stored)}.0.1" == shown


@pytest.mark.parametrize(
    "said", [{**SAID, "content": "Edited"}, EARLIER, {**EARLIER, "content": "Edited"}]
)
def test_a_cancel_with_a_message_of_before_has_a_new_run(
    alice: User, stored: StoredRuns, said: dict[str, Any]
) -> None:
    """The user has edited the message that the run answers, or generates an answer again."""
    answered(alice, stored, EARLIER, "One")
    run_id, resume = questioning(alice, stored, "cancelled")

    shown = [first_cursor(send(alice, said, resume=resume)) for _ in range(2)]

    [_, asked, new] = all_runs(stored)
    assert asked == run_id
    assert [f"{new}.0.1"] * 2 == shown


def test_a_cancel_with_one_of_the_contents_of_a_message_has_its_run(
    alice: User, stored: StoredRuns
) -> None:
    """The message was edited twice; the second time, the agent has asked."""
    for content in ("One", "Two"):
        answered(alice, stored, {**SAID, "content": content}, "Well.")
    run_id, resume = questioning(alice, stored, "cancelled")

    shown = [first_cursor(send(alice, SAID, resume=resume))]
    shown += [first_cursor(send(alice, {**SAID, "content": "One"}, resume=resume))]

    assert 4 == len(all_runs(stored))
    assert [f"{run_id}.1.1", f"{newest(stored)}.0.1"] == shown


@pytest.mark.parametrize(("said", "runs"), [(EARLIER, 4), (SAID, 3)])
def test_a_cancel_of_a_run_that_is_over_comes_with_a_message_of_before(
    alice: User, stored: StoredRuns, said: dict[str, Any], runs: int
) -> None:
    """That of an earlier run has a new one behind others; that of the run itself is refused."""
    answered(alice, stored, EARLIER, "One")
    run_id, resume = questioning(alice, stored, "cancelled")
    stored.cancel(run_id)
    answered(alice, stored, MORE, "Two")

    send(alice, said, resume=resume).close()

    assert runs == len(all_runs(stored))


def test_a_message_that_is_edited_back_counts_beside_a_reply(
    alice: User, stored: StoredRuns
) -> None:
    """Only the last content of its id is one that the thread has already."""
    for content in ("One", "Two"):
        answered(alice, stored, {**EARLIER, "content": content}, "Well.")
    run_id, resume = questioning(alice, stored, "resolved")

    for content, runs in (("Two", 3), ("One", 4), ("One", 4)):
        shown = first_cursor(send(alice, {**EARLIER, "content": content}, resume=resume))
        assert (f"{run_id}.1.1", runs) == (shown, len(all_runs(stored)))


def test_an_edited_message_counts_beside_a_reply(alice: User, stored: StoredRuns) -> None:
    """The page is shown what follows the reply, and the message has a run after that, once."""
    run_id, resume = questioning(alice, stored, "resolved")
    edited = {**SAID, "content": "Edited"}

    shown = [first_cursor(send(alice, edited, resume=resume)) for _ in range(2)]

    assert [f"{run_id}.1.1"] * 2 == shown
    assert ["queued", "pending"] == [stored.state(one) for one in all_runs(stored)]


def test_another_reply_is_refused_though_the_thread_has_other_runs(
    alice: User, stored: StoredRuns
) -> None:
    """The first reply counts, and the message that comes with the other one is not stored."""
    run_id, resume = questioning(alice, stored, "resolved")
    send(alice, SAID, resume=resume).close()
    stored.finish(stored.held(run_id))
    send(alice, LATER).close()

    refused = events_of(send(alice, SAID, MORE, resume=[{**resume[0], "payload": "Oslo"}]))

    assert ("RUN_ERROR", "input.stale") == (refused[-1]["type"], refused[-1]["code"])
    assert 2 == len(all_runs(stored))


def asking_beside_calls(
    alice: User, stored: StoredRuns, kind: str, payload: Any
) -> tuple[UUID, list[dict[str, Any]]]:
    """Create a run that has asked before the call `c` of the page; returns it and a reply."""
    send(alice, SAID).close()
    run_id, request_id = newest(stored), new_id()
    claim = stored.held(run_id)
    for call_id, name in (("c", "locate"), ("s", "calculator")):
        stored.write(claim, ToolCallRequested(call_id, name, {}))
    asked = replace(claim, last_seq=stored.last_seq(run_id))
    stored.park(asked, request_id, kind=kind, tool_call_id="s")
    return run_id, [{"interruptId": str(request_id), "status": "resolved", "payload": payload}]


def early_results(stored: StoredRuns, run_id: UUID) -> dict[str, tuple[str, bool]]:
    with stored.connections.reading() as sql:
        return pending_calls.early(sql, run_id, ["c", "s"])


@pytest.mark.parametrize("text", ["Oslo", "And then?"])
def test_a_result_counts_though_a_message_comes_with_the_reply(
    alice: User, stored: StoredRuns, text: str
) -> None:
    """The page shows the reply as a message, or the user has said more."""
    run_id, resume = asking_beside_calls(alice, stored, "question", "Oslo")
    items = [SAID, turn(run_id, "c", "s"), result(run_id, "c"), {**MORE, "content": text}]
    send(alice, *items, resume=resume, run_id="first").close()

    assert {"c": ("Rome", False)} == early_results(stored, run_id)
    items[2] = result(run_id, "c", "Bern")
    assert "RUN_ERROR" == events_of(send(alice, *items, resume=resume, run_id="first"))[-1]["type"]


def test_a_result_is_kept_with_one_reply(alice: User, stored: StoredRuns) -> None:
    """Pages send all results of the turn with each reply; the first one of a call counts."""
    run_id, resume = asking_beside_calls(alice, stored, "question", "Oslo")
    for output in ("Rome", "Bern"):
        items = [SAID, turn(run_id, "c", "s"), result(run_id, "c", output)]
        send(alice, *items, resume=resume).close()
        begun = replace(stored.held(run_id), last_seq=stored.last_seq(run_id))
        stored.park(begun, request_id := new_id(), kind="question", tool_call_id="s")
        resume = [{**resume[0], "interruptId": str(request_id)}]

    assert {"c": ("Rome", False)} == early_results(stored, run_id)
    with stored.connections.reading() as sql:
        kept = sql.scalars(select(inputs.c.results).where(inputs.c.run_id == run_id)).all()
        assert {} == pending_calls.early(sql, run_id, ["s"])
    assert 1 == len([results for results in kept if results is not None])


def test_a_page_is_not_sent_the_result_that_it_has_sent_early(
    alice: User, stored: StoredRuns
) -> None:
    """It came with the reply, for a call that the run makes after that.

    Other pages are sent it, or a snapshot where they have another one, which they would show first;
    and each the results of the service.
    """
    run_id, resume = asking_beside_calls(alice, stored, "tool_confirmation", {"approved": True})
    items = [SAID, turn(run_id, "c", "s"), result(run_id, "c"), result(run_id, "s", "7")]
    send(alice, *items, resume=resume, run_id="first").close()
    assert {"c": ("Rome", False)} == early_results(stored, run_id)

    claim = stored.held(run_id)
    for call_id, name, output in (("c", "locate", "Rome"), ("s", "calculator", "42")):
        stored.write(claim, ToolResult(call_id, name, output, False, 1))
    stored.finish(replace(claim, last_seq=stored.last_seq(run_id)))
    others = [[], [result(run_id, "c", "Bern")]]
    pages = [send(alice, *items, resume=resume, run_id="again")]
    pages += [send(alice, *items[:2], *sent, resume=resume) for sent in others]

    found = [[e for e in events_of(one) if e["type"].endswith(("RESULT", "SHOT"))] for one in pages]
    *shown, (snapshot, last) = found
    assert [["42"], ["Rome", "42"]] == [[e["content"] for e in events] for events in shown]
    assert ["Rome"] == [m["content"] for m in snapshot["messages"] if m["role"] == "tool"]
    assert "42" == last["content"]
    # Cursors count the same events in all streams.
    assert 1 == len({re.findall("^id: .*", one.text, re.M)[-1] for one in pages})


def test_a_result_that_differs_from_the_first_is_refused_with_its_call(
    alice: User, stored: StoredRuns
) -> None:
    """The error of a stream has nothing but its message to name the call."""
    run_id = asking(alice, stored, "c")
    items = (SAID, turn(run_id, "c"))
    send(alice, *items, result(run_id, "c")).close()
    refused = events_of(send(alice, *items, result(run_id, "c", "Paris")))[-1]

    named = result(run_id, "c")["toolCallId"]
    message = f"These tool calls already have a different result (tool_call_ids: {named})."
    assert ("tool_results.conflict", message) == (refused["code"], refused["message"])
