"""Requests by AG-UI that arrive at the same moment, while the thread's run waits."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from threading import Barrier
from typing import Any

import pytest

from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, commands, creation
from arkloop.shared.runs.pending_calls import CallResult
from arkloop.shared.runs.states import ResultSource
from tests.api.protocols.test_agui_runs import (
    LATER,
    SAID,
    all_runs,
    asking,
    first_cursor,
    send,
)
from tests.api.protocols.test_agui_runs_resumed import questioning
from tests.clients import User
from tests.stored_runs import StoredRuns

OTHER = {"id": "m8", "role": "user", "content": "Something else."}


def sent_at_once(
    alice: User, monkeypatch: pytest.MonkeyPatch, *said: dict[str, Any], **more: Any
) -> list[str]:
    """Send two messages, neither of which has a run before both requests have read the thread."""
    together, create, calls = Barrier(2, timeout=60), creation.create, count()

    def once_both_are_here(*how: Any, **more: Any) -> Any:
        if next(calls) < 2:
            together.wait()
        return create(*how, **more)

    monkeypatch.setattr(creation, "create", once_both_are_here)
    with ThreadPoolExecutor(2) as pool:
        sent = [
            pool.submit(lambda one: first_cursor(send(alice, one, **more)), one) for one in said
        ]
        return sorted(one.result() for one in sent)


def test_a_message_that_is_sent_twice_at_once_cancels_the_run_that_waits_alone(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second request is answered by the run of the first one."""
    asking(alice, stored, "c")

    shown = sent_at_once(alice, monkeypatch, LATER, LATER)

    [asked, answers] = all_runs(stored)
    assert ["cancelled", "queued"] == [stored.state(one) for one in (asked, answers)]
    assert [f"{answers}.0.1"] * 2 == shown


def test_two_messages_at_once_have_a_run_each(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the run that waits is cancelled; the second message waits for its turn."""
    asking(alice, stored, "c")

    shown = sent_at_once(alice, monkeypatch, LATER, OTHER)

    [asked, *answers] = all_runs(stored)
    assert sorted(f"{run_id}.0.1" for run_id in answers) == shown
    states = [stored.state(run_id) for run_id in answers]
    assert ("cancelled", ["pending", "queued"]) == (stored.state(asked), sorted(states))


def test_a_run_that_has_its_results_by_now_is_not_cancelled(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another page has sent them since the request has looked: the message comes after the run."""
    run_id, create = asking(alice, stored, "c"), creation.create

    def once_the_result_is_there(*how: Any) -> Any:
        with stored.connections.transaction() as tx:
            given = CallResult(tool_call_id="c", output="Rome")
            commands.give_results(tx, stored.actor, run_id, [given])
        return create(*how)

    monkeypatch.setattr(creation, "create", once_the_result_is_there)
    shown = first_cursor(send(alice, LATER))

    [asked, answers] = all_runs(stored)
    assert ["queued", "pending"] == [stored.state(one) for one in (asked, answers)]
    assert f"{answers}.0.1" == shown


def test_a_run_that_waits_for_http_tools_alone_by_now_is_not_cancelled(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's result has come since the request has looked; the payment's is still to come."""
    send(alice, SAID).close()
    [run_id], create = all_runs(stored), creation.create
    claim = stored.held(run_id)
    page: dict[str, Any] = {"tool_call_id": "c", "name": "locate", "arguments": {}}
    shop = {"tool_call_id": "h", "name": "pay", "arguments": {}, "result_from": "http"}
    for call, source in ((page, ResultSource.CLIENT), (shop, ResultSource.HTTP)):
        with stored.connections.transaction() as tx:
            claims.begin_tool_call(tx, claim, call["tool_call_id"], source)
    with stored.connections.transaction() as tx:
        claims.expect_result(tx, claim, "h")
    claim = replace(claim, last_seq=stored.last_seq(run_id))
    stored.park(claim, new_id(), kind="tool_results", calls=[page, shop])

    def once_the_result_is_there(*how: Any) -> Any:
        with stored.connections.transaction() as tx:
            given = CallResult(tool_call_id="c", output="Rome")
            commands.give_results(tx, stored.actor, run_id, [given])
        return create(*how)

    monkeypatch.setattr(creation, "create", once_the_result_is_there)
    send(alice, LATER).close()

    assert ["waiting", "pending"] == [stored.state(one) for one in all_runs(stored)]


@pytest.mark.parametrize("status", ["cancelled", "resolved"])
def test_a_reply_with_a_message_that_is_sent_twice_at_once_has_one_run(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """Both requests show what the first one does: the message's run, or what follows the reply."""
    _, resume = questioning(alice, stored, status)

    shown = sent_at_once(alice, monkeypatch, LATER, LATER, resume=resume)

    [asked, answers] = all_runs(stored)
    states = ["cancelled", "queued"] if status == "cancelled" else ["queued", "pending"]
    assert states == [stored.state(one) for one in (asked, answers)]
    assert [f"{answers}.0.1" if status == "cancelled" else f"{asked}.1.1"] * 2 == shown


def test_two_messages_with_the_same_cancel_at_once_have_a_run_each(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the run that has asked is cancelled; the second message waits for its turn."""
    run_id, resume = questioning(alice, stored, "cancelled")

    shown = sent_at_once(alice, monkeypatch, LATER, OTHER, resume=resume)

    [_, *answers] = all_runs(stored)
    assert sorted(f"{one}.0.1" for one in answers) == shown
    states = sorted(stored.state(one) for one in answers)
    assert ("cancelled", ["pending", "queued"]) == (stored.state(run_id), states)


def test_a_run_that_has_a_reply_by_now_is_not_cancelled(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another page has replied since the request has looked: the message comes after the run."""
    run_id, resume = questioning(alice, stored, "cancelled")
    create, calls = creation.create, count()

    def once_the_reply_is_there(*how: Any, **more: Any) -> Any:
        if not next(calls):
            stored.answer(run_id, "Rome")
        return create(*how, **more)

    monkeypatch.setattr(creation, "create", once_the_reply_is_there)
    shown = first_cursor(send(alice, LATER, resume=resume))

    [asked, answers] = all_runs(stored)
    assert ["queued", "pending"] == [stored.state(one) for one in (asked, answers)]
    assert f"{answers}.0.1" == shown


@pytest.mark.parametrize("is_executing", [False, True])
def test_a_run_whose_interrupt_another_page_has_cancelled_is_cancelled(
    alice: User, stored: StoredRuns, is_executing: bool
) -> None:
    """Otherwise it might ask again, which the page is not shown: it follows the message's run."""
    run_id, resume = questioning(alice, stored, "cancelled")
    send(alice, SAID, resume=resume).close()
    if is_executing:
        stored.held(run_id)
    shown = [first_cursor(send(alice, SAID, LATER, resume=resume)) for _ in range(2)]

    [_, answers] = all_runs(stored)
    assert [f"{answers}.0.1"] * 2 == shown
    states = ["executing", "pending"] if is_executing else ["cancelled", "queued"]
    assert states == [stored.state(one) for one in (run_id, answers)]
    assert stored.row(run_id)["cancel_requested_at"] is not None
    assert answers == stored.row(run_id)["superseded_by"]
    send(alice, SAID, OTHER, resume=resume).close()
    assert [*states, "pending"] == [stored.state(one) for one in all_runs(stored)]


@pytest.mark.parametrize("has_ended", [True, False])
def test_a_cancel_of_what_is_over_that_is_sent_twice_at_once_has_one_run(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    """Somebody else has replied; the message that comes with the cancel is in the thread once."""
    run_id, resume = questioning(alice, stored, "cancelled")
    stored.answer(run_id, "Oslo")
    if has_ended:
        stored.finish(stored.held(run_id))

    shown = sent_at_once(alice, monkeypatch, LATER, LATER, resume=resume)

    [_, answers] = all_runs(stored)
    assert [f"{answers}.0.1"] * 2 == shown
