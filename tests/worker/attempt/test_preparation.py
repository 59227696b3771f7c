"""The preparation of an attempt: what this worker lacks, and what earlier attempts have done."""

import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import ContextCompacted
from arkloop.shared.threads import thread_contexts
from arkloop.worker.agent.conversation import Counted, History, ResumeState, Turn
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.attempt.preparation import chain_of, continued, persona_of
from arkloop.worker.contract.outcomes import RunFailure
from arkloop.worker.process.process import WorkerProcess
from arkloop.worker.providers import context_sizes
from tests.stored_runs import StoredRuns

POINT = ContextCompacted(window_tokens=8_000, upto_position=3)
OF_RUN_BEFORE = Counted(700, (4, 2), ("scripted", "scripted-1"))


def test_a_count_is_void_once_an_earlier_attempt_has_moved_the_truncation_point(
    stored: StoredRuns, attempt: ClaimedRun
) -> None:
    """It was lost before it had a turn, and before it had stored the point in the thread."""
    seen = History(counted=OF_RUN_BEFORE)

    untouched = continued(seen, attempt, ResumeState())
    moved = continued(seen, attempt, ResumeState(compacted=[POINT]))

    assert OF_RUN_BEFORE == untouched.counted
    assert (None, {8_000: POINT}) == (moved.counted, moved.contexts)
    with stored.connections.reading() as sql:
        assert {8_000: POINT} == thread_contexts.load(sql, attempt.claim.thread_id)


def test_a_point_that_an_erasure_has_made_void_replaces_none(
    stored: StoredRuns, attempt: ClaimedRun
) -> None:
    """The history begins with the point that the thread has kept."""
    void = ContextCompacted(window_tokens=POINT.window_tokens)

    found = continued(
        History(contexts={8_000: POINT}), attempt, ResumeState(compacted=[POINT, void])
    )

    assert {8_000: POINT} == found.contexts
    with stored.connections.reading() as sql:
        assert {} == thread_contexts.load(sql, attempt.claim.thread_id)


def test_a_count_of_an_earlier_attempt_is_that_of_the_newest_request(attempt: ClaimedRun) -> None:
    """Its turn was finished after it had moved the point."""
    turn = Turn("m1", "let me see", seq=5, input_tokens=300)

    found = continued(
        History(counted=OF_RUN_BEFORE), attempt, ResumeState([turn], compacted=[POINT])
    )

    own_route = attempt.claim.route_id, attempt.claim.model
    assert Counted(300, (attempt.claim.position, 5), own_route) == found.counted


def chain_failure(process: WorkerProcess, attempt: ClaimedRun, route_id: str) -> RunFailure:
    attempt.claim = replace(attempt.claim, route_id=route_id)
    persona = process.catalog.persona(attempt.claim.org_id, None)
    with pytest.raises(RunFailure) as failed:
        chain_of(process, attempt, persona, ResumeState())
    return failed.value


def test_a_server_route_that_this_worker_lacks_can_be_retried(
    process: WorkerProcess, attempt: ClaimedRun
) -> None:
    """A run that a newer web process has accepted in a deploy fails with a retryable error, which
    does not say that the route is gone.
    """
    failure = chain_failure(process, attempt, "openai")

    assert ("provider.invalid_request", True) == (failure.code, failure.retryable)
    assert "This worker does not have the server's route 'openai'" in str(failure)


def test_a_deleted_route_of_an_org_cannot_be_retried(
    process: WorkerProcess, attempt: ClaimedRun
) -> None:
    """A route that the org has deleted is missing for all workers."""
    route_id = str(uuid4())

    failure = chain_failure(process, attempt, route_id)

    assert ("provider.invalid_request", False) == (failure.code, failure.retryable)
    assert f"Route '{route_id}' no longer exists." == str(failure)


def test_a_persona_that_this_worker_lacks_is_no_crash_in_the_message(
    process: WorkerProcess, attempt: ClaimedRun
) -> None:
    """The message of a missing persona names it, and a deploy as what can cause that."""
    with pytest.raises(RunFailure) as failed:
        persona_of(process, replace(attempt.claim, persona_id="new@1"))

    assert failed.value.retryable
    assert "This worker does not have persona 'new@1'" in str(failed.value)
    assert "which a deploy can cause" in str(failed.value)


def test_of_several_silent_servers_each_run_asks_one_more(
    process: WorkerProcess, attempt: ClaimedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run waits no longer for all of them than for one."""
    asked: list[str] = []

    def ask(route: Route, *_: Any) -> None:
        asked.append(route.id)
        time.sleep(2 * context_sizes.SECONDS)

    monkeypatch.setattr(context_sizes, "SECONDS", 0.05)
    monkeypatch.setattr(context_sizes, "ask", ask)
    chain = [Route(id=id_, provider="openai", model="m") for id_ in ("one", "two", "three")]
    monkeypatch.setattr(Catalog, "chain", lambda *_: chain)
    persona = process.catalog.persona(attempt.claim.org_id, None)

    for number in (1, 2, 3, 3):
        chain_of(process, attempt, persona, ResumeState())
        assert ["one", "two", "three"][:number] == asked
