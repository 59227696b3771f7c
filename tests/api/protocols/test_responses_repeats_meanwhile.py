"""Requests of Responses that are sent again once other things have happened."""

import pytest
from werkzeug.test import TestResponse

from arkloop.shared.runs.states import RunState
from tests.api.endpoints.made_providers import PATH, made
from tests.api.protocols.test_responses_repeats import answered, end, following, run_of
from tests.clients import User
from tests.stored_runs import StoredRuns, add_copies


def code_of(refused: TestResponse) -> object:
    return (refused.json or {})["error"]["code"]


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


@pytest.mark.parametrize("by_name", [True, False])
def test_the_same_request_gets_its_response_though_other_routes_are_chosen_by_now(
    stored: StoredRuns, alice: User, by_name: bool
) -> None:
    """It names a persona, whose route an admin has changed, or the org's default."""
    persona = {"key": "mine", "version": "1", "system_prompt": "Help.", "route_id": "scripted"}
    assert 201 == alice.post("/v1/personas", persona).status_code
    bodies = [
        {**following(answered(stored, alice), "Which city?", by_name=by_name), "model": model}
        for model in ("mine", "assistant")
    ]
    first = [run_of(alice.post("/v1/responses", body)) for body in bodies]

    models = f"{PATH}/{made(alice)['id']}/models"
    route_id = made(alice, models, is_default=True)["route_id"]
    newer = {**persona, "version": "2", "route_id": route_id}
    assert 201 == alice.post("/v1/personas", newer).status_code

    assert first == [run_of(alice.post("/v1/responses", body)) for body in bodies]
    for body in bodies:
        other = alice.post("/v1/responses", {**body, "model": route_id})
        assert (409, "responses.not_newest") == (other.status_code, code_of(other)), other.text


@pytest.mark.parametrize("has_ended", [True, False])
def test_the_same_request_gets_its_response_though_its_metadata_was_changed(
    stored: StoredRuns, alice: User, has_ended: bool
) -> None:
    """The service behind the client has noted something there, perhaps before the run began."""
    body = following(answered(stored, alice), "Which city?", by_name=True)
    body = {**body, "metadata": {"team": "red"}}
    first = run_of(alice.post("/v1/responses", body))
    noted = {"seen": "yes"}
    if has_ended:
        end(stored, first, RunState.COMPLETED)
        noted |= {"team": "blue"}
    assert 200 == alice.patch(f"/v1/runs/{first}", {"metadata": noted}).status_code

    assert first == run_of(alice.post("/v1/responses", body))
    for metadata in [{"team": "green"}, *([{}] if has_ended else [])]:
        other = alice.post("/v1/responses", {**body, "metadata": metadata})
        assert (409, "responses.not_newest") == (other.status_code, code_of(other)), other.text
