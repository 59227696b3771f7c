"""The preparation of an attempt: what earlier attempts have done to the history."""

from arkloop.shared.events.types import ContextCompacted
from arkloop.shared.threads import thread_contexts
from arkloop.worker.agent.conversation import Counted, History, ResumeState, Turn
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.attempt.preparation import continued
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


def test_a_count_of_an_earlier_attempt_is_that_of_the_newest_request(attempt: ClaimedRun) -> None:
    """Its turn was finished after it had moved the point."""
    turn = Turn("m1", "let me see", seq=5, input_tokens=300)

    found = continued(
        History(counted=OF_RUN_BEFORE), attempt, ResumeState([turn], compacted=[POINT])
    )

    own_route = attempt.claim.route_id, attempt.claim.model
    assert Counted(300, (attempt.claim.position, 5), own_route) == found.counted
