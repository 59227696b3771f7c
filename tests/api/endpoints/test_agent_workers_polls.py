"""Several polls of one agent worker at the same time."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from arkloop.shared.runs import agent_queue
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.agent_worker import MakeWorker, Worker, start, worker
from tests.clients import Register, User
from tests.waiting import eventually

pytestmark = pytest.mark.own_database

__all__ = ["start", "worker"]  # fixtures


@pytest.fixture
def waiting(app: Flask, alice: User) -> Callable[[int], None]:
    """Call it to wait until this many polls wait."""
    polls, topic = app.extensions["arkloop.polls"], agent_queue.topic(alice.org_id, "mine")
    return lambda count: eventually(lambda: len(polls._waiting.get(topic, ())) == count)


class Poll(threading.Thread):
    """A poll that waits, in a thread of its own; it has the runs at its end."""

    def __init__(self, worker: Worker, **body: Any) -> None:
        super().__init__(daemon=True)
        self._worker, self._body = worker, body
        self.runs: list[str] = []
        self.start()

    def run(self) -> None:
        body = {"worker_id": self._worker.id, "wait_seconds": 30, **self._body}
        self.runs += [run["run_id"] for run in self._worker.post("poll", **body).json["runs"]]


def test_polls_that_wait_get_a_run_each(
    waiting: Callable[[int], None], worker: MakeWorker, start: Callable[..., str]
) -> None:
    """A poll that waited while another one got a run gets the next run, and not the same again."""
    mine = worker()
    polls = [Poll(mine) for _ in range(2)]
    waiting(2)

    first = start()
    eventually(lambda: any(poll.runs for poll in polls))
    second = start()
    for poll in polls:
        poll.join(20)

    assert sorted([[first], [second]]) == sorted(poll.runs for poll in polls)


def test_a_run_that_a_woken_poll_cannot_hand_over_comes_with_the_next_poll(
    waiting: Callable[[int], None],
    worker: MakeWorker,
    start: Callable[..., str],
    connections: Connections,
) -> None:
    """The poll has claimed it for its worker, and ends: only an arrival returns such runs."""
    mine = worker()
    poll = Poll(mine)
    waiting(1)

    with connections.transaction() as tx:
        tx.sql.execute(text("LOCK TABLE agent_runs IN EXCLUSIVE MODE"))  # a claim needs none of it
        run_id = start()
        poll.join(20)
    assert (False, []) == (poll.is_alive(), poll.runs)

    assert [run_id] == [run["run_id"] for run in mine.poll()]


def test_a_poll_for_no_new_runs_leaves_them_to_others(
    waiting: Callable[[int], None], worker: MakeWorker, start: Callable[..., str]
) -> None:
    """With `max_runs` 0 it waits, and is not woken in place of a poll that can take the run."""
    full = Poll(worker(), max_runs=0)
    waiting(1)
    free = Poll(worker())
    waiting(2)

    run_id = start()
    free.join(20)

    assert ([run_id], True) == (free.runs, full.is_alive())


@pytest.mark.parametrize("loss", ["revoked", "of a member now"])
def test_a_poll_whose_key_has_lost_its_rights_leaves_runs_to_others(
    alice: User,
    register: Register,
    waiting: Callable[[int], None],
    worker: MakeWorker,
    start: Callable[..., str],
    loss: str,
) -> None:
    """It ends when it is woken, and another poll of the agent is woken at once."""
    admin = register(org_of=alice, role="admin")
    key = admin.post("/v1/api-keys", json={"name": "old", "scopes": ["agents.work"]}).json
    assert key is not None
    former = Poll(Worker(admin.with_token(key["key"])))
    waiting(1)
    other = Poll(worker())
    waiting(2)
    if loss == "revoked":
        assert 204 == alice.delete(f"/v1/api-keys/{key['id']}").status_code
    else:
        path = f"/v1/orgs/{alice.org_id}/members/{admin.id}"
        assert 200 == alice.patch(path, {"role": "member"}).status_code

    run_id = start()
    for poll in (other, former):
        poll.join(20)

    assert ([run_id], [], False) == (other.runs, former.runs, former.is_alive())
