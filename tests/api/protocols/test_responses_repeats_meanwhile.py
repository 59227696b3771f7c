"""Requests of Responses that are sent again once other things have happened."""

from arkloop.shared.runs.states import RunState
from tests.api.protocols.test_responses_repeats import answered, end, following, run_of
from tests.clients import User
from tests.stored_runs import StoredRuns, add_copies


def test_the_attempt_that_works_is_found_behind_many_that_failed(
    stored: StoredRuns, alice: User
) -> None:
    """A vendor was down: sent again, the request gets what was paid for."""
    body = following(answered(stored, alice), "Which city?", by_name=False)
    failed = run_of(alice.post("/v1/responses", body))
    end(stored, failed, RunState.FAILED)
    add_copies(stored.connections, failed, 20)

    made = run_of(alice.post("/v1/responses", body))
    again = [run_of(alice.post("/v1/responses", body))]
    end(stored, made, RunState.COMPLETED)
    again.append(run_of(alice.post("/v1/responses", body)))

    assert [made, made] == again
