"""The erasure of an end user from checkpoints of custom agents, in runs of others."""

import json
from contextlib import closing

import pytest
from sqlalchemy import select, update

from arkloop.shared.accounts import erasure
from arkloop.shared.claim import Claim
from arkloop.shared.config import Settings
from arkloop.shared.runs import checkpoints
from arkloop.shared.storage.connections import connect
from arkloop.shared.storage.postgres import COMMAND_TIMEOUTS
from arkloop.shared.storage.tables.runs import agent_checkpoints
from arkloop.shared.storage.tables.threads import threads
from tests.end_users import ANN, BOB
from tests.shared.accounts.test_erasure_summaries import WORD, ann_asks, end, erase, words
from tests.shared.runs.busy_thread import BusyThread
from tests.shared.runs.test_queries import beside
from tests.stored_runs import StoredRuns


@pytest.fixture
def thread(stored: StoredRuns, monkeypatch: pytest.MonkeyPatch) -> BusyThread:
    """A thread of no end user's, in which Ann has asked; an erasure waits for no run in it."""
    monkeypatch.setattr(erasure, "RUNS_END_SECONDS", 0)
    thread = BusyThread(stored)
    ann_asks(thread)
    return thread


def store(thread: BusyThread, claim: Claim) -> None:
    """Store what the agent has read as `run.checkpoint` does."""
    read = json.dumps({"read": f"I am Ann, my diagnosis is {WORD}."})
    with thread.stored.connections.transaction() as tx:
        checkpoints.store(tx, claim.run_id, claim.fence, read)


def load(thread: BusyThread, claim: Claim) -> str | None:
    with thread.stored.connections.reading() as sql:
        return checkpoints.load(sql, claim.run_id)


def test_checkpoints_of_later_runs_are_deleted(thread: BusyThread) -> None:
    """Checkpoints of their sub-runs are, too; no event and no prompt has to be left of these."""
    parent = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    below = BusyThread(thread.stored)
    child = below.claim(below.say("Look her up").run_id)
    with thread.stored.connections.transaction() as tx:
        of_child = update(threads).where(threads.c.id == below.id)
        tx.sql.execute(of_child.values(parent_run_id=parent.run_id))
    thread.stored.set(child.run_id, parent_run_id=parent.run_id)
    for claim, its_thread in ((child, below), (parent, thread)):
        store(thread, claim)
        end(its_thread, claim)
    assert {"messages", "agent_checkpoints"} == {*words(thread)}

    erase(thread)

    assert [] == words(thread)


def test_the_checkpoint_of_a_run_that_ends_meanwhile_is_deleted(
    thread: BusyThread, settings: Settings
) -> None:
    """The last transaction looks for it again: the run was active when prompts were forgotten."""
    first = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    store(thread, first)
    end(thread, first)
    second = thread.claim(thread.say("Bob asks again", end_user_id=BOB).run_id)
    store(thread, second)
    connections, org_id = thread.stored.connections, thread.stored.actor.org_id
    of_first = select(agent_checkpoints.c.run_id).where(agent_checkpoints.c.run_id == first.run_id)
    with closing(connect(settings, application="erasure", timeouts=COMMAND_TIMEOUTS)) as command:
        with connections.transaction() as tx:
            tx.sql.execute(of_first.with_for_update())
            join = beside(connections, lambda: erasure.erase_end_user(command, org_id, ANN))
            end(thread, second)
        join()

    assert [] == words(thread)


def test_a_checkpoint_from_before_the_end_user_stays(stored: StoredRuns) -> None:
    """The run that has stored it has read nothing of theirs."""
    thread = BusyThread(stored)
    claim = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    store(thread, claim)
    end(thread, claim)
    ann_asks(thread)

    erase(thread)

    assert load(thread, claim) is not None


def test_an_active_run_keeps_its_checkpoint(thread: BusyThread) -> None:
    """Another worker continues from it."""
    claim = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    store(thread, claim)

    erase(thread)

    assert load(thread, claim) is not None
