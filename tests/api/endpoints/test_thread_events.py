"""`/v1/threads/{id}/events`: all runs of a thread as one stream, within one process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from httpx_sse import ServerSentEvent
from sqlalchemy import delete

from arkloop.api.streaming import stream_hub
from arkloop.shared import times
from arkloop.shared.events.types import MessageDelta, RunSteered
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.times import rfc3339
from tests.api.streaming.followed_runs import read_by_httpx_sse
from tests.clients import Register, User, details_of, error_of
from tests.stored_runs import StoredRuns
from tests.waiting import eventually


def answered(alice: User, stored: StoredRuns, thread: str, *texts: str) -> UUID:
    """Let a message be answered by a run with these pieces of text; returns the run."""
    alice.say(thread, f"say {texts}")
    claim = stored.held(stored.create(UUID(thread)))
    stored.write(claim, *map(MessageDelta, texts))
    stored.finish(claim)
    return claim.run_id


def there(user: User, thread: str, query: str = "", **headers: str) -> list[ServerSentEvent]:
    """Return the frames that exist now."""
    path = f"/v1/threads/{thread}/events?follow=false{query}"
    response = user.get(path, headers=headers)
    assert 200 == response.status_code, response.text
    return read_by_httpx_sse(response.get_data())


def ids(frames: list[ServerSentEvent]) -> list[str]:
    return [frame.id for frame in frames]


def ids_of(*runs: tuple[UUID, int]) -> list[str]:
    """Return the ids of runs with these numbers of events, in order."""
    return [f"{run_id}:{seq}" for run_id, count in runs for seq in range(count + 1)]


@contextmanager
def following(user: User, thread: str, query: str = "") -> Iterator[Callable[[], list[Any]]]:
    """Follow the thread; call the value for the frames so far."""
    pieces: list[bytes] = []
    response = user.client.get(
        f"/v1/threads/{thread}/events{query}",
        headers={"Authorization": f"Bearer {user.token}"},
        buffered=False,
    )
    assert 200 == response.status_code
    taken = threading.Thread(target=lambda: pieces.extend(response.iter_encoded()), daemon=True)
    taken.start()
    yield lambda: read_by_httpx_sse(b"".join(list(pieces)))
    assert user.delete(f"/v1/threads/{thread}").status_code in (204, 404)
    taken.join(60)
    assert not taken.is_alive()


@pytest.fixture(autouse=True, scope="module")
def _look_often() -> Iterator[None]:
    """Let the hub find at once what nobody announces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_hub, "POLL_SECONDS", 0.2)
        yield


def test_all_runs_one_after_the_other(alice: User, stored: StoredRuns) -> None:
    """Each begins with a frame that has its message; the events are those of its own stream."""
    thread = alice.thread()
    first = answered(alice, stored, thread, "a", "b")
    alice.say(thread, "by the way")
    second = answered(alice, stored, thread)

    frames = there(alice, thread)

    assert ids_of((first, 4), (second, 2)) == ids(frames)
    said = alice.get(f"/v1/threads/{thread}/messages").json or []
    begun = [frames[0].json(), frames[5].json()]
    assert [[said[0]], said[1:]] == [event["data"].pop("messages") for event in begun]
    data = {"persona_id": "assistant@1", "model": "scripted-1", "supersedes": []}
    data |= {"created_by_user_id": str(alice.id), "truncated": False, "route_id": "scripted"}
    for run_id, event in zip((first, second), begun, strict=True):
        created_at = (alice.get(f"/v1/runs/{run_id}").json or {})["created_at"]
        expected = {"seq": 0, "type": "thread.run", "data": {"run_id": str(run_id), **data}}
        assert {**expected, "created_at": created_at} == event
    for run_id, own in ((first, frames[1:5]), (second, frames[6:])):
        stream = alice.get(f"/v1/runs/{run_id}/events").get_data()
        assert [frame.data for frame in read_by_httpx_sse(stream)] == [f.data for f in own]


def test_every_cut_can_be_resumed(alice: User, stored: StoredRuns) -> None:
    """After each id the rest follows, nothing twice, however the id is sent."""
    thread = alice.thread()
    first = answered(alice, stored, thread, "a", "b")
    second = answered(alice, stored, thread, "c")
    every = ids_of((first, 4), (second, 3))

    for number, last in enumerate(every[:-1], 1):
        assert every[number:] == ids(there(alice, thread, f"&after={last}"))
        assert every[number:] == ids(there(alice, thread, f"&lastEventId={last}"))
        resumed = there(alice, thread, f"&after={every[0]}", **{"Last-Event-ID": last})
        assert every[number:] == ids(resumed)
    assert [] == there(alice, thread, f"&after={every[-1]}")
    last = {"Last-Event-ID": every[-1]}
    path = f"/v1/threads/{thread}/events"
    assert 204 == alice.get(f"{path}?follow=false", headers=last).status_code


def test_frames_are_named_on_request(alice: User, stored: StoredRuns) -> None:
    """With `named` each frame has the type of its event."""
    thread = alice.thread()
    answered(alice, stored, thread, "a")

    frames = there(alice, thread, "&named=true")

    named = ["thread.run", "run.started", "message.delta", "run.completed"]
    assert named == [frame.event for frame in frames]


def test_a_browser_that_resumes_is_sent_its_id_first(alice: User, stored: StoredRuns) -> None:
    """The frame that ends a cut one has the id that the browser has."""
    thread = alice.thread()
    run_id = answered(alice, stored, thread, "a")
    headers = {"Last-Event-ID": f"{run_id}:2", "Cache-Control": "no-cache"}

    stream = alice.get(f"/v1/threads/{thread}/events?follow=false", headers=headers).get_data()

    assert stream.startswith(f": ok\nid: {run_id}:2\nevent: resumed\n\nretry: 1000\n".encode())


def test_a_second_device_sees_what_the_first_one_asks(alice: User, stored: StoredRuns) -> None:
    """New runs appear in an open stream, with their messages, while they write."""
    thread = alice.thread()
    first = answered(alice, stored, thread, "a")

    with following(alice, thread, f"?after={first}:3") as frames:
        for text in ("b", "c"):
            alice.say(thread, text)
            claim = stored.held(stored.create(UUID(thread)))
            stored.write(claim, MessageDelta(text))
            eventually(lambda claim=claim: f"{claim.run_id}:2" in ids(frames()))
            begun = [f.json()["data"] for f in frames() if f.id == f"{claim.run_id}:0"]
            assert [[text]] == [[m["content"] for m in one["messages"]] for one in begun]
            stored.finish(claim)
            eventually(lambda claim=claim: f"{claim.run_id}:3" in ids(frames()))
        assert 8 == len(frames())


def test_a_run_of_which_nobody_was_told_is_found(alice: User, stored: StoredRuns) -> None:
    """A run that no worker has started, or whose announcement was lost, appears within a poll."""
    thread = alice.thread()

    with following(alice, thread) as frames:
        run_id = stored.create(UUID(thread))
        eventually(lambda: ids_of((run_id, 0)) == ids(frames()))
        stored.cancel(run_id)
        eventually(lambda: ids_of((run_id, 1)) == ids(frames()))
        assert "run.cancelled" == frames()[-1].json()["type"]


def test_runs_appear_in_the_order_in_which_they_start(alice: User, stored: StoredRuns) -> None:
    """A run that waits for its thread appears when it starts, with its message; one that was
    withdrawn does not.
    """
    thread = alice.thread()
    claim = stored.held(stored.create(UUID(thread)))
    path = f"/v1/threads/{thread}/runs"
    waiting = [
        UUID((alice.post(path, {"message": said, "on_busy": "enqueue"}).json or {})["run_id"])
        for said in ("a", "b", "c")
    ]
    stored.cancel(waiting[1])

    with following(alice, thread) as frames:
        eventually(lambda: ids_of((claim.run_id, 1)) == ids(frames()))
        stored.finish(claim, with_followers=True)
        for run_id in (waiting[0], waiting[2]):
            eventually(lambda run_id=run_id: f"{run_id}:0" in ids(frames()))
            next_ = stored.held(run_id)
            stored.finish(next_, with_followers=True)
        every = ids_of((claim.run_id, 2), (waiting[0], 2), (waiting[2], 2))
        eventually(lambda: every == ids(frames()))
        begun = [f.json()["data"]["messages"] for f in frames() if f.id.endswith(":0")]
        assert [[], ["a"], ["c"]] == [[m["content"] for m in said] for said in begun]


def test_a_run_that_was_steered_is_sent_once(alice: User, stored: StoredRuns) -> None:
    """Its end moves it behind the message, which stands in its event alone, in a replay, too.

    A message that was sent while it ran is announced with the next run.
    """
    thread = alice.thread()
    alice.say(thread, "a")
    claim = stored.held(stored.create(UUID(thread)))
    request = {"message": "b", "on_busy": "steer"}

    with following(alice, thread) as frames:
        alice.say(thread, "sent meanwhile")
        made = alice.post(f"/v1/threads/{thread}/runs", request).json or {}
        stored.write(claim, RunSteered(made["steer"]["message_id"], "b"))
        eventually(lambda: ids_of((claim.run_id, 2)) == ids(frames()))
        stored.finish(claim, with_followers=True)
        last = answered(alice, stored, thread)
        eventually(lambda: f"{last}:2" in ids(frames()))
        every = ids_of((claim.run_id, 3), (last, 2))
        assert every == ids(frames())
        assert [f.data for f in frames()] == [f.data for f in there(alice, thread)]
        begun = [f.json()["data"]["messages"] for f in frames() if f.id.endswith(":0")]
        said = [[m["content"] for m in messages] for messages in begun]
        assert [["a"], ["sent meanwhile", "say ()"]] == said


def test_a_run_in_progress_is_resumed(alice: User, stored: StoredRuns) -> None:
    """The cursor may be that of a run that still writes; an idle thread's stream ends with
    `follow=false`.
    """
    thread = alice.thread()
    claim = stored.held(stored.create(UUID(thread)))
    stored.write(claim, MessageDelta("a"))

    assert ids_of((claim.run_id, 2)) == ids(there(alice, thread))
    with following(alice, thread, f"?after={claim.run_id}:2") as frames:
        stored.write(claim, MessageDelta("b"))
        eventually(lambda: [f"{claim.run_id}:3"] == ids(frames()))
        stored.finish(claim)
        eventually(lambda: f"{claim.run_id}:4" in ids(frames()))


def test_the_cursor_of_a_run_that_waits(alice: User, stored: StoredRuns) -> None:
    """The stream begins with the next run that starts, also after one that was cancelled, whatever
    becomes of the active one.
    """
    thread = alice.thread()
    claim = stored.held(stored.create(UUID(thread)))

    def send(said: str, on_busy: str) -> dict[str, Any]:
        body = {"message": said, "on_busy": on_busy}
        return alice.post(f"/v1/threads/{thread}/runs", body).json or {}

    cancelled, waiting = (UUID(send(said, "enqueue")["run_id"]) for said in "ab")
    stored.cancel(cancelled)

    with (
        following(alice, thread, f"?after={cancelled}:1") as of_cancelled,
        following(alice, thread, f"?after={waiting}:0") as of_waiting,
    ):
        stored.write(claim, RunSteered(send("c", "steer")["steer"]["message_id"], "c"))
        stored.finish(claim, with_followers=True)
        next_ = stored.held(waiting)
        stored.finish(next_)
        for frames in (of_cancelled, of_waiting):
            eventually(lambda frames=frames: ids_of((waiting, 2)) == ids(frames()))


def test_the_cursor_of_a_scheduled_run(alice: User, stored: StoredRuns) -> None:
    """Where no run has started yet, the stream begins with the first one."""
    thread = alice.thread()
    body = {"message": "a", "not_before": rfc3339(times.now() + timedelta(days=1))}
    scheduled = (alice.post(f"/v1/threads/{thread}/runs", body).json or {})["run_id"]

    with following(alice, thread, f"?after={scheduled}:0") as frames:
        first = answered(alice, stored, thread)
        eventually(lambda: ids_of((first, 2)) == ids(frames()))


def test_a_retry_names_what_it_replaces(alice: User, stored: StoredRuns) -> None:
    """The frame of a retry has the ids of the runs before it, that of another run none."""
    thread = alice.thread()
    first = answered(alice, stored, thread)
    retry = UUID((alice.post(f"/v1/threads/{thread}:retry").json or {})["run_id"])
    claim = stored.held(retry)
    stored.finish(claim)
    answered(alice, stored, thread)

    begun = [f.json()["data"]["supersedes"] for f in there(alice, thread) if f.id.endswith(":0")]

    assert [[], [str(first)], []] == begun


def test_long_messages_are_left_out(alice: User, stored: StoredRuns) -> None:
    """A run's frame has the newest of its messages, and says that there are more."""
    thread = alice.thread()
    for name in "abc":
        alice.say(thread, name * 60_000)
    answered(alice, stored, thread)

    data = there(alice, thread)[0].json()["data"]

    assert ["b", "c", "s"] == [message["content"][0] for message in data["messages"]]
    assert data["truncated"]


def test_a_stream_does_not_pass_over_a_hole(
    alice: User, stored: StoredRuns, connections: Connections
) -> None:
    """It breaks off where events are lost, before the next run; then it is 410."""
    thread = alice.thread()
    run_id = answered(alice, stored, thread, *"abcdef")
    answered(alice, stored, thread)
    connections.redis.delete(connections.keys.events(run_id))
    with connections.transaction() as tx:
        holed = (run_events.c.run_id == run_id) & run_events.c.seq.in_((4, 5))
        tx.sql.execute(delete(run_events).where(holed))

    assert ids_of((run_id, 3)) == ids(there(alice, thread))

    response = alice.get(f"/v1/threads/{thread}/events?after={run_id}:3")
    assert (410, "runs.events_lost") == error_of(response)


@pytest.mark.parametrize(
    "cursor", ["x", "5", "01a20e86-fafd-77e2-885e-4838fa54c1e0", ":1", "1:1", "{run}:x", "{run}:-1"]
)
@pytest.mark.parametrize("name", ["after", "lastEventId"])
def test_a_malformed_cursor_is_refused(alice: User, name: str, cursor: str) -> None:
    """It has the run and the number; the parameter is named."""
    cursor = cursor.replace("{run}", "01a20e86-fafd-77e2-885e-4838fa54c1e0")
    path = f"/v1/threads/{alice.thread()}/events"

    response = alice.get(path, query_string={name: cursor})

    assert [name] == list(details_of(response))


def test_a_cursor_of_another_thread_is_refused(alice: User, stored: StoredRuns) -> None:
    """A run that is not one of the thread's, or is there no more."""
    elsewhere = stored.create()
    thread = alice.thread()
    path = f"/v1/threads/{thread}/events"

    response = alice.get(path, headers={"Last-Event-ID": f"{elsewhere}:0"})

    assert ["Last-Event-ID"] == list(details_of(response))
    big = alice.get(f"{path}?after={elsewhere}:{2**63}")
    assert ["after"] == list(details_of(big))


def test_who_may_follow_a_thread(alice: User, register: Register) -> None:
    """Everybody who sees the thread may, with the scopes for messages and for runs."""
    thread = alice.thread(is_private=True)
    path = f"/v1/threads/{thread}/events"

    assert 200 == alice.client.head(path, headers=_bearer(alice)).status_code
    assert (404, "threads.not_found") == error_of(register().get(path))
    assert (404, "threads.not_found") == error_of(register(org_of=alice, role="admin").get(path))
    for scope in ("data.threads.read", "data.runs.read"):
        assert (403, "auth.forbidden") == error_of(alice.api_key(scope).get(path))
    assert 401 == alice.client.get(path).status_code


def test_a_thread_that_becomes_private_is_private_in_open_streams(
    alice: User, register: Register, stored: StoredRuns
) -> None:
    """Others' idle streams of it break off; its creator's does not."""
    thread = alice.thread()
    other = register(org_of=alice)
    response = other.client.get(
        f"/v1/threads/{thread}/events", headers=_bearer(other), buffered=False
    )
    rest: list[bytes] = []
    taken = threading.Thread(target=lambda: rest.extend(response.iter_encoded()), daemon=True)
    taken.start()

    with following(alice, thread) as frames:
        alice.patch(f"/v1/threads/{thread}", {"is_private": True})
        taken.join(60)
        assert not taken.is_alive()
        run_id = stored.create(UUID(thread))
        eventually(lambda: ids_of((run_id, 0)) == ids(frames()))
        stored.cancel(run_id)
    assert [] == read_by_httpx_sse(b"".join(rest))


def _bearer(user: User) -> dict[str, str]:
    return {"Authorization": f"Bearer {user.token}"}
