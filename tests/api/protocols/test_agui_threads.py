"""Threads as AG-UI shows them to a page that connects."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from arkloop.api.protocols import agui_threads
from arkloop.shared.claim import Claim
from arkloop.shared.events.types import MessageCompleted, MessageDelta, MessageReset, RunError
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.times import EPOCH, now, rfc3339
from tests.api.protocols.said import with_earlier_lines
from tests.api.protocols.test_agui_runs import LATER, events_in, newest, send, until
from tests.clients import User
from tests.stored_runs import StoredRuns

URL = {"type": "url", "value": "https://example.com/a.png"}
DATA = {"type": "data", "value": "aGVsbG8=", "mimeType": "text/plain"}
TEXT = {"type": "text", "text": "Compare them."}
IMAGE = {"type": "image", "source": URL}
NAMED = {"filename": "a.txt"}
SAID = {
    "id": "m1",
    "role": "user",
    "content": [IMAGE, {"type": "document", "source": DATA, "metadata": NAMED}, TEXT],
}


def connected(alice: User, thread: str, **headers: str) -> list[dict[str, Any]]:
    """Return the events that a page gets which connects to the thread."""
    body = {"threadId": thread, "runId": str(new_id()), "messages": [], "protocolVersion": "1.0"}
    lines = alice.post("/v1/agui/connect", json=body, headers=headers).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]


def snapshot(alice: User, thread: str, **headers: str) -> list[dict[str, Any]]:
    events = connected(alice, thread, **headers)
    [shown] = [event for event in events if event["type"] == "MESSAGES_SNAPSHOT"]
    messages: list[dict[str, Any]] = shown["messages"]
    return messages


FAILED = RunError("worker.crashed", "The worker was lost.", retryable=True)


@pytest.mark.parametrize(
    ("ending", "shown"),
    [
        (
            {"error": FAILED, "state": RunState.FAILED},
            {"type": "RUN_ERROR", "message": FAILED.message, "code": FAILED.code},
        ),
        ({"state": RunState.CANCELLED}, {"type": "RUN_FINISHED", "outcome": {"type": "cancelled"}}),
        ({}, {"type": "RUN_FINISHED", "outcome": {"type": "success"}}),
    ],
)
def test_the_end_of_the_last_run_is_shown(
    alice: User, stored: StoredRuns, ending: dict[str, Any], shown: dict[str, Any]
) -> None:
    """A page whose stream was cut before it learns by a connect that its run has failed."""
    thread_id = UUID(alice.thread(external_id=(name := str(new_id()))))
    # Neither a run before it counts, nor one that waits for its time.
    endings: list[dict[str, Any]] = [{"error": FAILED, "state": RunState.FAILED}, ending]
    for how in endings:
        claim = stored.held(run_id := stored.create(thread_id))
        stored.finish(claim, **how)
    later = {"message": "Hello", "not_before": rfc3339(now() + timedelta(hours=1))}
    assert 201 == alice.post(f"/v1/threads/{thread_id}/runs", json=later).status_code

    ended = connected(alice, name)[-1]

    assert shown.items() <= ended.items(), ended
    if ended["type"] == "RUN_ERROR":  # by which a page knows it again
        run: Any = alice.get(f"/v1/runs/{run_id}").json
        failed_at = datetime.fromisoformat(run["failed_at"])
        assert failed_at == EPOCH + timedelta(milliseconds=ended["timestamp"])


def large(stored: StoredRuns, thread_id: UUID, turns: int) -> Claim:
    """Claim a run with this number of turns, of which a page of 1 MiB has three."""
    claim = stored.held(stored.create(thread_id))
    for number in range(turns):
        said = f"turn {number} " + "x" * 256 * 1024
        stored.write(claim, MessageCompleted(str(new_id()), said, Usage()))
    return replace(claim, last_seq=stored.last_seq(claim.run_id))


def texts_of(messages: list[dict[str, Any]]) -> list[str]:
    return [" ".join(message["content"].split()[:2]) for message in messages]


TURNS = [f"turn {number}" for number in range(5)]


def test_a_thread_with_a_large_run_is_shown(alice: User, stored: StoredRuns) -> None:
    """The messages before it are there while it is active, and all of its own afterwards."""
    thread_id = UUID(alice.thread(external_id=(name := str(new_id()))))
    alice.say(str(thread_id), "First question")
    first = large(stored, thread_id, 5)
    assert stored.finish(first)
    alice.say(str(thread_id), "Second question")
    claim = large(stored, thread_id, 5)
    stored.park(claim, request_id := new_id())
    before = ["First question", *TURNS, "Second question"]

    assert before == texts_of(snapshot(alice, name))
    stored.answer(claim.run_id, "Yes", request_id)
    again = stored.held(claim.run_id)
    stored.write(again, MessageDelta("a"), MessageReset(again.last_seq + 1, "retry"))
    assert stored.finish(again)
    # The text that is taken back, for which all messages are sent anew, was that of the next turn.
    cursor = {"Last-Event-ID": f"{claim.run_id}.1.1"}
    assert [*before, *TURNS] == texts_of(snapshot(alice, name, **cursor))
    assert [*before, *TURNS] == texts_of(snapshot(alice, name))


@pytest.mark.parametrize(("most", "shown_turns"), [(agui_threads.MAX_SHOWN, 12), (7, 6), (1, 3)])
def test_the_messages_of_a_thread_are_bounded(
    alice: User,
    stored: StoredRuns,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    shown_turns: int,
) -> None:
    """A page sends them all with each request, which may have 8 MiB and 5,000 messages."""
    monkeypatch.setattr(agui_threads, "MAX_SHOWN", most)
    thread_id = UUID(alice.thread(external_id=(name := str(new_id()))))
    alice.say(str(thread_id), "Question")
    assert stored.finish(large(stored, thread_id, 16))

    shown = texts_of(snapshot(alice, name))

    assert [f"turn {number}" for number in range(16)][-shown_turns:] == shown


def test_files_of_a_message_are_shown_as_parts(alice: User) -> None:
    """A page can show them, and sends them with its next message, as it got them."""
    thread = str(new_id())
    body = {"threadId": thread, "runId": str(new_id()), "messages": [SAID]}
    run_id = cancelled(alice, body)

    [shown] = snapshot(alice, thread)

    image, document, text = shown.pop("content")
    assert {"id": "m1", "role": "user"} == shown
    assert (IMAGE, TEXT) == (image, text)
    source = document.pop("source")
    assert {"type": "document", "metadata": NAMED} == document
    assert ("file", "text/plain") == (source["type"], source["mimeType"])
    assert b"hello" == alice.get(f"/v1/files/{source['value']}/content").data

    [again] = snapshot(alice, thread)
    more = {**again, "id": "m2"}
    body = {"threadId": thread, "runId": str(new_id()), "messages": [again, more]}
    assert run_id != cancelled(alice, body)
    assert again["content"] == snapshot(alice, thread)[-1]["content"]


def cancelled(alice: User, body: dict[str, Any]) -> str:
    """Send a message by AG-UI, and cancel its run; returns the run's id."""
    sent = alice.post("/v1/agui", json=body, buffered=False)
    assert 200 == sent.status_code, sent.text
    sent.close()
    [thread] = alice.get(f"/v1/threads?external_id={body['threadId']}").json or []
    run_id = str(thread["active_run_id"])
    assert alice.post(f"/v1/runs/{run_id}:cancel").status_code < 300
    return run_id


def test_a_message_is_shown_without_the_lines_that_the_server_put_there(
    alice: User, stored: StoredRuns
) -> None:
    """They are for the model; lines that the author has written are shown."""
    thread = alice.post("/v1/threads", {"external_id": "page-7"}).json or {}
    with_earlier_lines(alice, stored, thread["id"])

    first, second, third = [one["content"] for one in snapshot(alice, "page-7")]

    assert "User: Hm." in first and first.endswith("\n\nI am Ann.")
    assert ("Hi!", [IMAGE, {"type": "text", "text": "Hm?"}]) == (second, third)


HELLO = {"id": "m1", "role": "user", "content": "Hello"}
OTHER_AGENT = "?persona_id=plain"


def answered(
    alice: User, stored: StoredRuns, said: dict[str, Any], text: str, to: str = ""
) -> UUID:
    """Send a message to an agent, whose run has this answer; returns the run's id."""
    send(alice, said, query=to).close()
    end(stored, run_id := newest(stored), text)
    return run_id


def end(stored: StoredRuns, run_id: UUID, text: str) -> None:
    claim = stored.held(run_id)
    stored.write(claim, MessageCompleted(str(new_id()), text, Usage()))
    assert stored.finish(replace(claim, last_seq=stored.last_seq(run_id)))


def contents(alice: User) -> list[Any]:
    """Return the contents that a page is shown which connects; its messages have an id each."""
    sent = until(send(alice, query="/connect"), rb"MESSAGES_SNAPSHOT.*\n\n").decode()
    shown = events_in(sent)[1]["messages"]
    assert len(shown) == len({message["id"] for message in shown})
    return [message["content"] for message in shown]


def test_an_answer_that_was_generated_again_replaces_the_first_one(
    alice: User, stored: StoredRuns
) -> None:
    """The page has sent the message again under its id, and not those that came after it."""
    first = answered(alice, stored, HELLO, "One")
    assert ["Hello", "One"] == contents(alice)
    send(alice, HELLO).close()
    assert ["Hello"] == contents(alice)
    stored.cancel(newest(stored))
    answered(alice, stored, LATER, "Two")
    answered(alice, stored, HELLO, "Three")

    assert [LATER["content"], "Two", "Hello", "Three"] == contents(alice)
    # A page that lost the first stream gets the rest of it, behind the same messages.
    cursor = {"Last-Event-ID": f"{first}.0.1"}
    assert "RUN_FINISHED" == connected(alice, "chat-1", **cursor)[-1]["type"]


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED])
def test_an_answer_stays_if_no_other_one_was_generated(
    alice: User, stored: StoredRuns, state: RunState
) -> None:
    """The later run has ended without a text; one with a text replaces the answer."""
    answered(alice, stored, HELLO, "One")
    answered(alice, stored, LATER, "Two")
    error = FAILED if state == RunState.FAILED else None
    for _ in range(2):
        send(alice, HELLO).close()
        assert [LATER["content"], "Two", "Hello"] == contents(alice)
        stored.finish(stored.held(newest(stored)), error=error, state=state)
        assert ["Hello", "One", LATER["content"], "Two"] == contents(alice)
    ended = "RUN_ERROR" if state == RunState.FAILED else "RUN_FINISHED"
    assert ended == connected(alice, "chat-1")[-1]["type"]

    send(alice, HELLO).close()
    claim = stored.held(run_id := newest(stored))
    stored.write(claim, MessageDelta("Thr"))
    ending = replace(claim, last_seq=stored.last_seq(run_id))
    stored.finish(ending, error=error, state=state)
    assert [LATER["content"], "Two", "Hello", "Thr"] == contents(alice)


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_message_with_a_file_is_shown_once(
    alice: User, stored: StoredRuns, is_deleted: bool
) -> None:
    """Its base64 is stored anew with each request, for another answer or another agent."""
    answered(alice, stored, SAID, "One")
    if is_deleted:
        [[_, document, _], _] = contents(alice)
        assert 204 == alice.delete(f"/v1/files/{document['source']['value']}").status_code
    answered(alice, stored, SAID, "Two")
    answered(alice, stored, SAID, "Three", OTHER_AGENT)

    said, *answers = contents(alice)

    assert (TEXT, ["Two", "Three"]) == (said[-1], answers)


def test_a_message_for_two_agents_is_shown_before_both_answers(
    alice: User, stored: StoredRuns
) -> None:
    """Each of them may have generated its answer again."""
    answered(alice, stored, HELLO, "One")
    answered(alice, stored, HELLO, "Two", OTHER_AGENT)
    assert ["Hello", "One", "Two"] == contents(alice)
    answered(alice, stored, HELLO, "Three")
    assert ["Hello", "Two", "Three"] == contents(alice)


@pytest.mark.parametrize("names_route", [False, True])
def test_the_answer_to_a_message_that_did_not_come_by_agui_is_generated_again(
    alice: User, stored: StoredRuns, names_route: bool
) -> None:
    """The page has sent it under the id that it was shown, as it was shown."""
    thread_id = alice.thread(external_id="chat-1")
    with_earlier_lines(alice, stored, thread_id)
    route = f"?route_id={stored.row(newest(stored))['route_id']}" if names_route else ""
    first, said, with_file = snapshot(alice, "chat-1")
    answered(alice, stored, said, "One", route)
    answered(alice, stored, with_file, "Two", route)
    answered(alice, stored, said, "Three", route)
    answered(alice, stored, said, "Four", OTHER_AGENT)

    shown = [first["content"], with_file["content"], "Two", "Hi!", "Three", "Four"]
    assert shown == contents(alice)


def answer_by_rest(
    alice: User, stored: StoredRuns, thread_id: str, text: str, **agent: str
) -> None:
    """Let an agent answer the last message of a thread."""
    assert 201 == alice.post(f"/v1/threads/{thread_id}/runs", agent).status_code
    end(stored, newest(stored), text)


def test_the_answers_of_other_agents_to_one_message_stay(alice: User, stored: StoredRuns) -> None:
    """Each of them has answered it by REST; a page generates one of the answers again."""
    said = {**HELLO, "id": alice.say(thread_id := alice.thread(external_id="chat-1"), "Hello")}
    for text, persona in (("One", "assistant"), ("Two", "plain"), ("Three", "assistant")):
        answer_by_rest(alice, stored, thread_id, text, persona_id=persona)
    assert ["Hello", "One", "Two", "Three"] == contents(alice)
    answered(alice, stored, said, "Four")
    assert ["Hello", "Two", "Four"] == contents(alice)
    answered(alice, stored, said, "Five", OTHER_AGENT)
    assert ["Hello", "Four", "Five"] == contents(alice)


def test_the_answers_by_other_routes_stay(alice: User, stored: StoredRuns) -> None:
    """An agent is its persona and its route; a page that names none means neither of two."""
    said = {**HELLO, "id": alice.say(thread_id := alice.thread(external_id="chat-1"), "Hello")}
    answer_by_rest(alice, stored, thread_id, "One")
    route_id = stored.row(newest(stored))["route_id"]
    answer_by_rest(alice, stored, thread_id, "Two")
    stored.set(newest(stored), route_id="other")

    answered(alice, stored, said, "Three", f"?route_id={route_id}")
    assert ["Hello", "Two", "Three"] == contents(alice)
    answered(alice, stored, said, "Four")
    assert ["Hello", "Two", "Three", "Four"] == contents(alice)


@pytest.mark.parametrize("to", ["", OTHER_AGENT])
def test_another_message_under_the_same_id_is_shown_as_well(
    alice: User, stored: StoredRuns, to: str
) -> None:
    """A page that is loaded again may number its messages from the beginning."""
    answered(alice, stored, HELLO, "One")
    answered(alice, stored, {**HELLO, "content": "Bye"}, "Two", to)
    assert ["Hello", "One", "Bye", "Two"] == contents(alice)
    answered(alice, stored, HELLO, "Three")
    assert ["Bye", "Two", "Hello", "Three"] == contents(alice)
    answered(alice, stored, {**HELLO, "content": "Bye"}, "Four", to)
    assert ["Hello", "Three", "Bye", "Four"] == contents(alice)
    [_, _, shown, _] = snapshot(alice, "chat-1")
    answered(alice, stored, shown, "Five", to)
    assert ["Hello", "Three", "Bye", "Five"] == contents(alice)


def test_a_message_that_is_sent_again_behind_others_is_shown_once(
    alice: User, stored: StoredRuns
) -> None:
    """Its run waits for its turn, behind that of another agent."""
    answered(alice, stored, HELLO, "One")
    send(alice, LATER, query=OTHER_AGENT).close()
    claim = stored.held(newest(stored))
    send(alice, HELLO).close()

    shown = [contents(alice)]
    stored.finish(claim, with_followers=True)
    assert [[LATER["content"], "Hello"]] * 2 == [*shown, contents(alice)]


def test_a_message_that_was_never_answered_is_shown_where_it_was_sent_last(
    alice: User, stored: StoredRuns
) -> None:
    """The error with which a connect ends is that of its last run."""
    shown = []
    for later in (LATER, {**LATER, "id": "m10", "content": "Well?"}):
        send(alice, HELLO).close()
        stored.finish(stored.held(newest(stored)), error=FAILED, state=RunState.FAILED)
        shown.append(contents(alice))
        answered(alice, stored, later, "Two")

    assert [["Hello"], [LATER["content"], "Two", "Hello"]] == shown


@pytest.mark.parametrize("most", range(1, 7))
def test_a_part_of_a_thread_has_each_message_once(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The first copy may be beyond the part: then the answer to it is as any other."""
    monkeypatch.setattr(agui_threads, "MAX_ENTRIES", most)
    answered(alice, stored, HELLO, "One")
    answered(alice, stored, LATER, "Two")
    answered(alice, stored, HELLO, "Three")

    entries = ["Hello", "One", LATER["content"], "Two", "Hello", "Three"][-most:]
    assert entries[2 if most == 6 else 0 :] == contents(alice)
