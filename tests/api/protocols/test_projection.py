"""Projected streams: the same frames live and later, cursors, and ends before the run's."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from flask import Flask
from sqlalchemy import delete

from arkloop.api.protocols.projection import projected
from arkloop.api.streaming import sse
from arkloop.shared.errors import EventsLost
from arkloop.shared.events import event_log
from arkloop.shared.events.types import RunWaitingForInput
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.times import now, rfc3339
from tests.api.protocols.recorded_runs import project_all
from tests.api.streaming.followed_runs import FollowedRun
from tests.clients import User
from tests.stored_runs import StoredRuns

OPENING = sse.HELLO + sse.RETRY
DONE = b"data: [DONE]\n\n"


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
