"""`/v1/threads/{id}/events` for a client that loses the thread while its stream is open."""

import threading
from collections.abc import Iterable, Iterator
from uuid import UUID

import pytest
from flask import Flask

from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.shared.events.types import MessageDelta
from tests.api.streaming.followed_runs import read_by_httpx_sse
from tests.clients import Register, User
from tests.end_users import ANN
from tests.lost_threads import LOSSES, reader_of
from tests.stored_runs import StoredRuns
from tests.waiting import eventually


def opened(reader: User, thread: str, query: str = "") -> Iterator[bytes]:
    """Open the stream; each piece is made when it is taken."""
    response = reader.client.get(
        f"/v1/threads/{thread}/events{query}",
        headers={"Authorization": f"Bearer {reader.token}"},
        buffered=False,
    )
    assert 200 == response.status_code, response.text
    return iter(response.iter_encoded())


def answered(stored: StoredRuns, owner: User, thread: str, text: str) -> UUID:
    """Let a message be answered by a run."""
    owner.say(thread, f"asked: {text}")
    claim = stored.held(stored.create(UUID(thread)))
    stored.write(claim, MessageDelta(text))
    stored.finish(claim)
    return claim.run_id


def is_looked_up(hub: StreamHub, thread_id: UUID) -> bool:
    """Return whether the hub has looked at the idle thread since its subscription."""
    followed = hub._followed.get(thread_id)
    return followed is not None and followed.is_told and followed.is_sure


def sent(pieces: Iterable[bytes]) -> list[str]:
    return [frame.id for frame in read_by_httpx_sse(b"".join(pieces))]


@pytest.mark.parametrize("loss", ["private", "another end user"])
def test_an_idle_stream_announces_no_run_of_a_thread_that_was_lost(
    app: Flask, alice: User, register: Register, stored: StoredRuns, loss: str
) -> None:
    """The run begins right after the change, before a poll has seen it."""
    hub: StreamHub = app.extensions["arkloop.hub"]
    thread = alice.thread(end_user_id=ANN)
    pieces: list[bytes] = []
    stream = opened(reader_of(alice, register, loss), thread)
    taken = threading.Thread(target=lambda: pieces.extend(stream), daemon=True)
    taken.start()
    eventually(lambda: is_looked_up(hub, UUID(thread)))

    LOSSES[loss](alice, f"/v1/threads/{thread}")
    answered(stored, alice, thread, "A secret.")
    taken.join(60)

    assert not taken.is_alive()
    assert [] == sent(pieces)
    assert b"secret" not in b"".join(pieces)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("follows", ["true", "false"])
def test_a_stream_of_ended_runs_stops_at_the_next_one(
    alice: User, register: Register, stored: StoredRuns, loss: str, follows: str
) -> None:
    """A client that still reads earlier runs gets no others of a thread that it has lost."""
    thread = alice.thread(end_user_id=ANN)
    first, *_ = [answered(stored, alice, thread, text) for text in "abc"]
    stream = opened(reader_of(alice, register, loss), thread, f"?follow={follows}")
    before: list[bytes] = []
    while not sent(before):
        before.append(next(stream))

    LOSSES[loss](alice, f"/v1/threads/{thread}")
    if loss != "deleted":
        answered(stored, alice, thread, "A secret.")
    after = list(stream)

    assert [f"{first}:{seq}" for seq in range(4)] == sent(before + after)
    assert b"thread.run" not in b"".join(after)
    assert b"secret" not in b"".join(after)
