"""Overrides of a run over HTTP: what its persona allows counts for this run, and for its retry."""

from typing import Any

import pytest

from tests.caller import Caller, error_of, script


@pytest.fixture(scope="module")
def host(user: Caller) -> str:
    """A persona with a variable in its prompt; returns its key."""
    user.made(
        "/v1/personas",
        {
            "key": "host",
            "system_prompt": "You serve {{ customer }} today.",
            "tools": ["calculator"],
            "max_steps": 4,
            "overrides": ["instructions", "variables", "limits"],
        },
    )
    return "host"


def test_a_run_has_its_own_prompt(user: Caller, host: str) -> None:
    """The scripted model counts the words that it gets; the run shows what it overrides."""
    given = {"instructions": "Be very brief.", "variables": {"customer": "Ada and Bob"}}

    run = user.ended(user.start(user.thread(), persona_id=host, **given))

    assert given == run["overrides"]
    prompt = "You serve Ada and Bob today.\n\nBe very brief."
    assert len(prompt.split()) == run["usage"]["input_tokens"]


def test_a_lowered_limit_ends_the_run_and_its_retry(user: Caller, host: str) -> None:
    """A retry has the overrides of the run that it repeats."""
    calculation = {"tool": "calculator", "args": {"expression": "6*7"}}
    thread_id = user.thread(script(calculation, calculation, calculation, {"say": "42"}))
    given: dict[str, Any] = {"limits": {"max_steps": 2}, "variables": {"customer": "Ada"}}

    first = user.ended(user.start(thread_id, persona_id=host, route_id="scripted", **given))
    retried = user.ended(user.retry(thread_id).json()["run_id"])

    assert "max_steps" == first["stop_reason"] == retried["stop_reason"]
    assert given == first["overrides"] == retried["overrides"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"persona_id": "careful", "instructions": "x"}, "instructions"),
        ({"persona_id": "host"}, "variables.customer"),
        ({"persona_id": "plain", "limits": {"max_steps": 33}}, "limits.max_steps"),
        ({"persona_id": "plain", "tools": [{}]}, "tools"),
    ],
)
def test_a_run_that_its_persona_does_not_allow_is_refused(
    user: Caller, host: str, body: dict[str, Any], field: str
) -> None:
    """422 names the field, and there is no run."""
    thread_id = user.thread("Hi")

    answer = user.http.post(f"/v1/threads/{thread_id}/runs", json=body)

    assert (422, "validation.error") == error_of(answer)
    assert [field] == list(answer.json()["details"])
    assert [] == user.get(f"/v1/threads/{thread_id}/runs")


def test_a_persona_lists_known_overrides(user: Caller) -> None:
    """An unknown one is refused when the persona is published."""
    answer = user.http.post("/v1/personas", json={"key": "odd", "overrides": ["prompt"]})

    assert (422, "validation.error") == error_of(answer)
    assert ["overrides"] == list(answer.json()["details"])
