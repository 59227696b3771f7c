"""Projected streams: the same frames live and later, cursors, and ends before the run's."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import delete

from arkloop.api.protocols.agui_projection import AguiProjection
from arkloop.api.protocols.projection import projected
from arkloop.api.protocols.responses_projection import ResponseProjection
from arkloop.api.streaming import sse
from arkloop.shared.errors import EventsLost
from arkloop.shared.events import event_log
from arkloop.shared.events.types import RunWaitingForInput, ToolCallRequested
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.times import now, rfc3339
from tests.api.protocols import (
    test_agui_projection,
    test_agui_runs,
    test_responses_input,
    test_responses_projection,
)
from tests.api.protocols.recorded_runs import NAMES, events_of, project_all
from tests.api.protocols.test_agui_runs import SAID
from tests.api.protocols.test_responses_input import MODEL, output
from tests.api.streaming.followed_runs import FollowedRun
from tests.clients import User
from tests.stored_runs import StoredRuns

OPENING = sse.HELLO + sse.RETRY
DONE = b"data: [DONE]\n\n"
PATH = "/v1/responses"


class Doubled:
    """Two frames per event with its number among the events; over after the event `last`."""

    def __init__(self, last: int | None = None) -> None:
        self.is_over = False
        self._last = last
        self._count = 0

    def frames(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        self._count += 1
        self.is_over = event["seq"] == self._last
        for half in ("a", "b"):
            yield f"data: {self._count}{half} {event['type']}\n\n".encode()

    def closing(self) -> Iterable[bytes]:
        return [DONE]


@pytest.fixture
def run(connections: Connections, alice: User) -> FollowedRun:
    return FollowedRun.of(StoredRuns.of(connections, alice))


def stored(run: FollowedRun) -> list[dict[str, Any]]:
    with run.stored.connections.reading() as sql:
        return [json.loads(event.payload) for event in event_log.read_table(sql, run.id, 0)]


def stream(app: Flask, run: FollowedRun, projection: Doubled, **how: Any) -> Iterator[bytes]:
    with app.test_request_context():
        response = projected(run.id, run.stored.actor, projection, **how)
    return cast("Iterator[bytes]", iter(response.response))


def test_a_replay_is_what_was_sent_live(app: Flask, run: FollowedRun) -> None:
    """A follower from the first event on, one that came later, and the fold get equal frames."""
    live = stream(app, run, Doubled(), is_new=True)
    assert sse.HELLO == next(live)
    run.write("a", "b")
    run.end()
    frames = project_all(stored(run), Doubled())

    assert DONE == frames[-1]
    assert OPENING + b"".join(frames) == sse.HELLO + b"".join(live)
    assert OPENING + b"".join(frames) == b"".join(stream(app, run, Doubled()))


def test_a_cursor_leaves_out_the_first_frames(app: Flask, run: FollowedRun) -> None:
    """Each number of frames is a place to continue from; beyond the last there is the closing."""
    run.write("a", "b")
    run.end()
    frames = project_all(stored(run), Doubled())

    for skip in (0, 1, 2, 5, len(frames) - 1, len(frames) + 7):
        rest = [*frames[:-1][skip:], DONE]
        assert OPENING + b"".join(rest) == b"".join(stream(app, run, Doubled(), skip=skip))


def test_a_cursor_beyond_the_frames_ends_the_stream(app: Flask, run: FollowedRun) -> None:
    """A client that has had more frames than there are cannot have had those of this run."""
    run.write("a", "b")
    count = len(project_all(stored(run), Doubled()))
    beyond = b"data: beyond\n\n"
    not_there = OPENING + beyond + DONE

    active = stream(app, run, Doubled(), skip=count, beyond=beyond)
    assert sse.HELLO == next(active)
    assert not_there == b"".join(stream(app, run, Doubled(), skip=count + 1, beyond=beyond))
    run.end()
    *frames, _ = project_all(stored(run), Doubled())
    assert sse.RETRY + b"".join(frames[count:]) + DONE == b"".join(active)
    for skip in (len(frames), len(frames) + 1):
        assert not_there == b"".join(stream(app, run, Doubled(), skip=skip, beyond=beyond))


def test_a_projection_ends_before_its_run(app: Flask, run: FollowedRun) -> None:
    """A response that is over is closed in order, and events after that are not in it."""
    live = stream(app, run, Doubled(last=2))
    run.write("a", "b")
    frames = project_all(stored(run), Doubled(last=2))

    assert 5 == len(frames)
    assert OPENING + b"".join(frames) == b"".join(live)


def test_long_streams_are_sent_in_pieces(app: Flask, run: FollowedRun) -> None:
    """A page with more frames than fit into a piece loses and repeats none."""
    run.write(*("x" * 20 for _ in range(1_500)))
    run.end()
    sent = list(stream(app, run, Doubled()))

    assert OPENING + b"".join(project_all(stored(run), Doubled())) == b"".join(sent)
    assert 3 < len(sent)
    assert max(map(len, sent)) < 40_000


def lose_events(run: FollowedRun, *seqs: int) -> None:
    with run.stored.connections.transaction() as tx:
        lost = (run_events.c.run_id == run.id) & run_events.c.seq.in_(seqs)
        tx.sql.execute(delete(run_events).where(lost))
    run.lose()


@pytest.mark.parametrize(
    "path", ["/v1/ui/chat/{0}/stream?startIndex=3", "/v1/responses/resp_{0.hex}?stream=true"]
)
def test_a_stream_that_met_lost_events_is_refused_from_then_on(
    path: str, alice: User, run: FollowedRun
) -> None:
    """Clients have no cursor that says where they were cut off, and would try again for ever."""
    run.write("a", "b", "c", "d", "e")
    run.end()
    lose_events(run, 4, 5)

    first = alice.get(path.format(run.id))
    first.get_data()  # to the end of the stream
    again = [alice.get(path.format(run.id)) for _ in range(2)]

    assert 200 == first.status_code
    assert [410, 410] == [one.status_code for one in again]
    assert all('"runs.events_lost"' in one.text for one in again)
    assert "[DONE]" not in first.text and "response.completed" not in first.text


def test_a_projection_that_is_over_before_lost_events_is_sent(app: Flask, run: FollowedRun) -> None:
    """The first response of a run is whole, even if a later one of the same run is not."""
    run.write("a", "b", "c", "d", "e")
    run.end()
    lose_events(run, 4, 5)
    frames = project_all(stored(run), Doubled(last=3))

    b"".join(stream(app, run, Doubled()))

    assert OPENING + b"".join(frames) == b"".join(stream(app, run, Doubled(last=3)))
    for last in (None, 4, 6):
        with pytest.raises(EventsLost):
            stream(app, run, Doubled(last=last))


def wait(run: FollowedRun) -> None:
    """Let the run end a response with a question."""
    asked = {"request_id": str(new_id()), "kind": "question", "prompt": "Which?"}
    run.stored.write(run.claim, RunWaitingForInput(**asked, expires_at=rfc3339(now())))


def test_an_object_that_needs_lost_events_is_refused(alice: User, run: FollowedRun) -> None:
    """It would lack a part of the answer, and say that it is whole."""
    run.write("a")
    wait(run)
    run.write("b", "c", "d")
    run.end()
    lose_events(run, 5)
    first = f"/v1/responses/resp_{run.id.hex}"

    whole = alice.get(first)
    lost = [alice.get(f"{first}_1"), alice.post(f"{first}_1/cancel")]
    body = {"model": "scripted", "input": "And now?", "background": True}
    next_ = alice.post("/v1/responses", {**body, "previous_response_id": f"resp_{run.id.hex}_1"})

    assert (200, True) == (whole.status_code, "Which?" in whole.text)
    assert [410, 410] == [one.status_code for one in lost]
    assert all('"runs.events_lost"' in one.text for one in lost)
    assert 200 == next_.status_code, next_.text


@pytest.mark.parametrize("query", ["", "?stream=true", "?stream=true&starting_after=1"])
def test_a_response_after_lost_events_is_whole(query: str, alice: User, run: FollowedRun) -> None:
    """They are of an earlier response of the run, and what is known of it is enough."""
    run.write("a", "b")
    wait(run)
    run.write("c", "d")
    run.end()
    first = f"/v1/responses/resp_{run.id.hex}"
    whole = alice.get(f"{first}_1{query}").text
    lose_events(run, 2)

    alice.get(f"{first}?stream=true").get_data()  # to where it is broken off
    again = alice.get(f"{first}_1{query}")

    assert 410 == alice.get(f"{first}{query}").status_code

    assert (200, whole) == (again.status_code, again.text)
    assert "cd" in whole


def test_a_cancel_that_was_carried_out_is_not_refused(alice: User, run: FollowedRun) -> None:
    """Its object says that events are missing; once the run has ended, it is refused as others."""
    run.write("a", "b")
    at_end = replace(run.claim, last_seq=run.stored.last_seq(run.id))
    assert run.stored.park(at_end, new_id())
    lose_events(run, 2)

    first, again = (alice.post(f"/v1/responses/resp_{run.id.hex}/cancel") for _ in range(2))

    assert (200, 410) == (first.status_code, again.status_code)
    shown = first.json or {}
    assert ("incomplete", "events_lost") == (shown["status"], shown["incomplete_details"]["reason"])
    assert "cancelled" == run.stored.state(run.id)


@pytest.mark.parametrize("name", NAMES)
def test_each_part_of_a_run_is_folded_without_an_event(name: str) -> None:
    """The rest is used where it is enough, as to take the client's reply."""
    events = events_of(name)
    for lost in events:
        left = [one for one in events if one is not lost]
        for waits in range(4):
            response = ResponseProjection(test_responses_projection.FACTS, waits)
            part = AguiProjection(test_agui_projection.FACTS, waits)
            for projection in (response, part):
                projection.opening()
                project_all(left, projection)
            asked = response.asked["data"] if response.asked is not None else {}
            own = {call["tool_call_id"] for call in response.client_calls(asked)}
            assert own == set(response.asked_calls.values())
            assert response.response()["output"] or response.asked is None


def lose_calls(stored: StoredRuns, run_id: UUID) -> None:
    with stored.connections.transaction() as tx:
        is_lost = (run_events.c.run_id == run_id) & (run_events.c.type == ToolCallRequested.type)
        tx.sql.execute(delete(run_events).where(is_lost))


def test_a_run_that_lost_its_calls_is_given_their_results(alice: User, stored: StoredRuns) -> None:
    """Its own ids of them are enough; those that clients have are of the events that are lost."""
    run_id, calls = test_responses_input.calling(stored, alice, "c", "d")
    lose_calls(stored, run_id)
    body = {**MODEL, "previous_response_id": f"resp_{run_id.hex}"}

    by_events = alice.post(PATH, {**body, "input": [output(calls[0]["call_id"])]})
    by_own_ids = alice.post(PATH, {**body, "input": [output("c"), output("d")]})

    assert (400, True) == (by_events.status_code, "which the run has as c" in by_events.text)
    assert 200 == by_own_ids.status_code, by_own_ids.text
    assert f"resp_{run_id.hex}_1" == (by_own_ids.json or {})["id"]


def test_a_response_asks_for_calls_that_were_lost_before_it(
    alice: User, stored: StoredRuns
) -> None:
    """It is sent as any other, so that its client can send what the run waits for."""
    tool = {"type": "function", "name": "t", "parameters": {"type": "object"}}
    made = alice.post(PATH, {**MODEL, "input": "Hello", "tools": [tool]}).json or {}
    run = FollowedRun(stored, stored.held(UUID(made["id"].removeprefix("resp_"))))
    calls = [{"tool_call_id": id_, "name": "t", "arguments": {}} for id_ in ("c", "d")]
    with stored.connections.transaction() as tx:
        for id_ in ("c", "d"):
            claims.begin_tool_call(tx, run.claim, id_, ResultSource.CLIENT)
    stored.write(run.claim, *(ToolCallRequested(**call) for call in calls))
    wait(run)
    at_end = replace(run.claim, last_seq=stored.last_seq(run.id))
    stored.park(at_end, new_id(), kind="tool_results", calls=calls)
    lose_calls(stored, run.id)

    asking = alice.get(f"{PATH}/{made['id']}_1")
    items = (asking.json or {})["output"]
    outputs = [output(item["call_id"]) for item in items]
    given = alice.post(PATH, {**MODEL, "input": [*items, *outputs]})

    assert ["c", "d"] == [item["call_id"] for item in items]
    assert 2 == len({item["id"] for item in items})
    assert (200, f"{made['id']}_2") == (given.status_code, (given.json or {}).get("id")), given.text


def test_an_approval_of_a_lost_call_is_a_question(alice: User, stored: StoredRuns) -> None:
    """Its prompt names the tool, and the answer to it is the decision."""
    run = FollowedRun.of(stored)
    stored.write(run.claim, ToolCallRequested("c", "refund", {"eur": 50}))
    wait(run)
    at_end = replace(run.claim, last_seq=stored.last_seq(run.id))
    asked = {"kind": "tool_confirmation", "prompt": "Allow the call of refund?"}
    stored.park(at_end, new_id(), **asked, tool_call_id="c")
    lose_calls(stored, run.id)
    id_ = f"resp_{run.id.hex}"

    asking = alice.get(f"{PATH}/{id_}_1")
    given = alice.post(PATH, {**MODEL, "previous_response_id": f"{id_}_1", "input": "yes"})

    [message] = (asking.json or {})["output"]
    assert "Allow the call of refund?" == message["content"][0]["text"]
    assert (200, f"{id_}_2") == (given.status_code, (given.json or {}).get("id")), given.text


def test_a_cancel_of_a_run_that_lost_its_calls_is_shown(alice: User, stored: StoredRuns) -> None:
    """Its object has what is known of them."""
    run_id, _ = test_responses_input.calling(stored, alice, "c", "d")
    lose_calls(stored, run_id)

    cancelled = alice.post(f"{PATH}/resp_{run_id.hex}/cancel")

    assert 200 == cancelled.status_code, cancelled.text
    shown = cancelled.json or {}
    assert "events_lost" == shown["incomplete_details"]["reason"]
    assert [("c", "t"), ("d", "t")] == [(one["call_id"], one["name"]) for one in shown["output"]]
    assert "cancelled" == stored.state(run_id)


def test_a_reply_is_taken_though_calls_before_it_are_lost(alice: User, stored: StoredRuns) -> None:
    """What it replies to is known; the stream after it is broken off."""
    run_id = test_agui_runs.asking(alice, stored, "c")
    lose_calls(stored, run_id)
    sent = [SAID, test_agui_runs.turn(run_id, "c"), test_agui_runs.result(run_id, "c")]
    test_agui_runs.send(alice, *sent).close()
    stored.park(stored.held(run_id), request_id := new_id())
    entry = {"interruptId": str(request_id), "status": "resolved", "payload": "Oslo"}

    resumed = test_agui_runs.send(alice, SAID, resume=[entry])

    assert (200, "queued") == (resumed.status_code, stored.state(run_id)), resumed.text
