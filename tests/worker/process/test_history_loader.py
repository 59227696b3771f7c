"""The order in which histories are read, and the memory that those of a process take."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest

from arkloop.shared.claim import Claim
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.threads import threads
from arkloop.worker.contract.messages import UserMessage
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process import history
from arkloop.worker.process.history_loader import HistoryLoader, HistoryMemory
from tests.clients import Register
from tests.stored_runs import StoredRuns
from tests.waiting import in_parallel


def claim_of(stored: StoredRuns, *said: str) -> Claim:
    """Claim a run in a thread of its own with these messages."""
    thread_id = stored.thread()
    for content in said:
        with stored.connections.transaction() as tx:
            threads.add_message(tx, stored.actor, thread_id, content=content)
    return stored.held(stored.create(thread_id))


@pytest.fixture
def loader(connections: Connections) -> HistoryLoader:
    """A loader with one MiB for all histories."""
    settings = replace(connections.settings, history_memory_mib=1)
    return HistoryLoader(replace(connections, settings=settings))


class Patient:
    """A run that waits as often as it must; `waits` is set when it does."""

    def __init__(self) -> None:
        self.waits = threading.Event()
        self.stop = StopSignal()
        self.aborting = self.stop.aborting

    def check(self) -> None:
        self.stop.check()

    def wait_for_memory(self, seconds: float) -> None:
        self.waits.set()
        time.sleep(seconds)


class Impatient(Patient):
    def wait_for_memory(self, seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")


never = Impatient()


def test_an_org_gets_no_more_than_its_share_of_the_memory() -> None:
    """Others still find room; what is given back is free again."""
    memory = HistoryMemory(100)
    noisy, quiet = new_id(), new_id()

    assert [True, True, False] == [memory.take(noisy, 25) for _ in range(3)]
    assert memory.take(quiet, 50)
    assert not memory.take(quiet, 1)
    memory.give_back(noisy, 25)
    assert memory.take(noisy, 25)


def test_an_org_that_has_none_is_always_let_in() -> None:
    """Its run does not wait for those of others, even where it needs more than there is."""
    memory = HistoryMemory(100)
    for _ in range(4):
        assert memory.take(new_id(), 40)

    assert memory.take(new_id(), 1000)


def test_files_wait_for_files_alone() -> None:
    """An org has those of one request, however much histories take, its own and those of others;
    for more it waits, and so do its histories while both are more than its share.
    """
    memory = HistoryMemory(100)
    org, other = new_id(), new_id()
    assert memory.take(org, 50)
    assert memory.take(other, 50)

    assert [True, False] == [memory.take(org, 30, for_files=True) for _ in range(2)]
    assert memory.take(other, 30, for_files=True)

    memory.give_back(org, 30, for_files=True)
    assert memory.take(org, 30, for_files=True)
    memory.give_back(org, 50)
    assert [True, False] == [memory.take(org, 10) for _ in range(2)]


def test_a_short_thread_needs_no_room(stored: StoredRuns, loader: HistoryLoader) -> None:
    """It is part of a group's read, and counts for nothing."""
    with ExitStack() as held:
        for _ in range(5):
            claim = claim_of(stored, "hello")
            found = held.enter_context(loader.history_of(claim, history.MAX_BYTES, never))
            assert [UserMessage("hello")] == found.messages


def test_a_long_thread_waits_for_the_memory_of_others_of_its_org(
    stored: StoredRuns, loader: HistoryLoader
) -> None:
    """It is read as soon as a history before it is no longer needed."""
    text = "x" * 200_000
    first, second = claim_of(stored, text), claim_of(stored, text)
    run, done = Patient(), threading.Event()

    def read() -> None:
        with loader.history_of(second, 200_000, run) as found:
            assert [UserMessage(text)] == found.messages
        done.set()

    with loader.history_of(first, 200_000, never):
        reader = threading.Thread(target=read)
        reader.start()
        assert run.waits.wait(60)
        assert not done.is_set()
    reader.join(60)

    assert done.is_set()


def test_the_memory_of_a_run_that_fails_is_free_again(
    stored: StoredRuns, loader: HistoryLoader
) -> None:
    """A run's memory is released whatever ends the block."""
    for _ in range(3):
        claim = claim_of(stored, "x" * 200_000)
        with pytest.raises(ZeroDivisionError), loader.history_of(claim, 200_000, never):
            raise ZeroDivisionError


def test_histories_of_one_org_are_read_one_at_a_time(
    connections: Connections,
    register: Register,
    stored: StoredRuns,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While one of its threads is read, another org's is read beside it."""
    loader, other = HistoryLoader(connections), StoredRuns.of(connections, register())
    text = "x" * (history.OPENING_BYTES + 1)
    slow, behind, beside = (claim_of(who, text) for who in (stored, stored, other))
    load: Callable[..., history.History] = history.load
    started, go_on = threading.Event(), threading.Event()

    def held_up(sql: object, claim: Claim, *rest: object) -> history.History:
        if claim is slow:
            started.set()
            assert go_on.wait(60)
        return load(sql, claim, *rest)

    monkeypatch.setattr(history, "load", held_up)
    read: list[Claim] = []

    def reader(claim: Claim) -> threading.Thread:
        def run() -> None:
            with loader.history_of(claim, 100_000, never):
                read.append(claim)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    first = reader(slow)
    assert started.wait(60)
    second = reader(behind)
    reader(beside).join(60)
    assert [beside] == read
    go_on.set()
    first.join(60)
    second.join(60)

    assert {slow.run_id, behind.run_id, beside.run_id} == {claim.run_id for claim in read}


def test_a_run_that_waits_for_its_orgs_turn_can_be_stopped(
    stored: StoredRuns, loader: HistoryLoader
) -> None:
    """A cancel does not wait for the histories of other runs."""
    text = "x" * 200_000
    held, waiting, behind = (claim_of(stored, text) for _ in range(3))
    run, cancelled = Patient(), Patient()
    cancelled.stop.set(CancelRequested())

    def read() -> None:
        with loader.history_of(waiting, 200_000, run):
            pass

    with loader.history_of(held, 200_000, never):
        reader = threading.Thread(target=read)
        reader.start()
        assert run.waits.wait(60)
        with pytest.raises(CancelRequested), loader.history_of(behind, 200_000, cancelled):
            pass
    reader.join(60)


def test_many_runs_of_one_org_wait_for_no_memory_that_they_do_not_need(
    stored: StoredRuns, connections: Connections
) -> None:
    """One run of an org at a time reserves the most memory that a history may need, so that many
    small ones do not wait.
    """
    loader = HistoryLoader(connections)
    claims = [claim_of(stored, "x" * (history.OPENING_BYTES + 1)) for _ in range(20)]

    def read(number: int) -> None:
        with loader.history_of(claims[number], history.MAX_BYTES, never):
            time.sleep(0.05)

    in_parallel(20, read)
