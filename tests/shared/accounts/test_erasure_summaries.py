"""The erasure of an end user from the summaries that runs of others have in their events."""

import json
from dataclasses import replace

import pytest
from sqlalchemy import ColumnElement, update

from arkloop.shared.accounts import erasure
from arkloop.shared.claim import Claim
from arkloop.shared.events.event_log import data_of
from arkloop.shared.events.types import ContextCompacted
from arkloop.shared.storage.tables.threads import threads
from arkloop.shared.threads import thread_contexts
from arkloop.worker.agent.conversation import resume_state_from
from tests.clients import User
from tests.end_users import ANN, BOB
from tests.shared.accounts.test_erasure import places_of
from tests.shared.runs.busy_thread import BusyThread
from tests.shared.runs.test_endings import completed
from tests.stored_runs import StoredRuns

WORD = "w0rd-of-ann"
#: As it is stored, without the summary.
TAKEN = {"window_tokens": 8_000, "upto_position": 2, "upto_seq": 1, "dropped_messages": 2}
POINT = ContextCompacted(**TAKEN, summary=f"Ann's diagnosis is “{WORD}”.\nShe asks.")


@pytest.fixture
def thread(stored: StoredRuns, monkeypatch: pytest.MonkeyPatch) -> BusyThread:
    """A thread of no end user's; an erasure waits for no run in it."""
    monkeypatch.setattr(erasure, "RUNS_END_SECONDS", 0)
    return BusyThread(stored)


def ann_asks(thread: BusyThread) -> None:
    asked = thread.say(f"I am Ann, my diagnosis is {WORD}.", end_user_id=ANN)
    thread.answer(asked.run_id, "to Ann")


def summarized(thread: BusyThread, point: ContextCompacted = POINT) -> Claim:
    """Let a run of Bob's sum the thread up."""
    claim = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    thread.stored.write(claim, point)
    with thread.stored.connections.statement() as tx:
        thread_contexts.move(tx, claim, point)
    return claim


def end(thread: BusyThread, claim: Claim) -> None:
    thread.end(thread.ending(completed, claim, "to Bob"))


def words(thread: BusyThread) -> list[str]:
    return places_of(thread.stored.connections, WORD)


def of(thread: BusyThread) -> ColumnElement[bool]:
    return threads.c.id == thread.id


def erase(thread: BusyThread) -> None:
    erasure.erase_end_user(thread.stored.connections, thread.stored.actor.org_id, ANN)


def test_summaries_in_events_of_others_are_forgotten(
    thread: BusyThread, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All later runs lose them, in several transactions; the events and their numbers stay."""
    monkeypatch.setattr(erasure, "RUNS_AT_ONCE", 1)
    ann_asks(thread)
    claims = [summarized(thread)]
    end(thread, claims[0])
    claims.append(summarized(thread))
    end(thread, claims[1])
    connections = thread.stored.connections
    before = [thread.stored.events(claim.run_id) for claim in claims]
    assert {"messages", "run_events", "thread_contexts"} == {*places_of(connections, WORD)}

    erase(thread)

    assert [] == places_of(connections, WORD)
    for claim, events in zip(claims, before, strict=True):
        connections.redis.delete(connections.keys.events(claim.run_id))  # what 600 s do
        shown = alice.get(f"/v1/runs/{claim.run_id}/events?follow=false").text
        assert WORD not in shown
        after = thread.stored.events(claim.run_id)
        [(old, new)] = [pair for pair in zip(events, after, strict=True) if pair[0] != pair[1]]
        summary = json.dumps(POINT.summary, ensure_ascii=False)
        assert old.payload.replace(f',"summary":{summary}', "") == new.payload
        assert TAKEN == data_of(new.payload)


def test_a_summary_from_before_the_end_user_stays(thread: BusyThread) -> None:
    """The run that has it has read nothing of theirs."""
    point = replace(POINT, summary="They asked.")
    claim = summarized(thread, point)
    end(thread, claim)
    ann_asks(thread)

    erase(thread)

    assert [point] == resume_state_from(thread.stored.events(claim.run_id)).compacted


def test_a_run_that_resumes_keeps_what_comes_before_the_end_user(thread: BusyThread) -> None:
    """Its point is that of the thread, where it stays; so is its summary."""
    thread.answer(thread.say("Bob's question", end_user_id=BOB).run_id, "to Bob")
    ann_asks(thread)
    point = ContextCompacted(window_tokens=8_000, upto_position=2, summary="Bob has asked.")
    claim = summarized(thread, point)

    erase(thread)

    with thread.stored.connections.reading() as sql:
        assert {8_000: point} == thread_contexts.load(sql, thread.id)
    assert [point] == resume_state_from(thread.stored.events(claim.run_id)).compacted


@pytest.mark.parametrize("has_ended", [True, False], ids=["ended", "active"])
def test_summaries_of_sub_runs_are_forgotten_in_their_threads(
    thread: BusyThread, has_ended: bool
) -> None:
    """All of them: a sub-run gets what its parent has read with its first message."""
    ann_asks(thread)
    parent = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    below = BusyThread(thread.stored)
    claim = summarized(below)
    with thread.stored.connections.transaction() as tx:
        tx.sql.execute(update(threads).values(parent_run_id=parent.run_id).where(of(below)))
    thread.stored.set(claim.run_id, parent_run_id=parent.run_id)
    if has_ended:
        end(below, claim)
    assert {"messages", "run_events", "thread_contexts"} == {*words(thread)}

    erase(thread)

    assert [] == words(thread)


def test_an_active_run_that_resumes_sums_up_anew(thread: BusyThread) -> None:
    """Its truncation point is void: without the summary it would lose what others have said, for
    all later runs, too. One that never had a summary is as it was.
    """
    ann_asks(thread)
    claim = summarized(thread)
    plain = ContextCompacted(window_tokens=4_000, upto_position=2)
    thread.stored.write(replace(claim, last_seq=2), plain)

    erase(thread)

    assert [] == places_of(thread.stored.connections, WORD)
    compacted = resume_state_from(thread.stored.events(claim.run_id)).compacted
    assert [ContextCompacted(window_tokens=8_000), plain] == compacted
