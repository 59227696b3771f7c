"""Runs with schemas that an earlier release stored, and which the present one refuses."""

import json
from typing import Any

import pytest

from arkloop.shared.catalog import output_schema, personas, published_personas
from arkloop.shared.catalog.personas import InvalidPersona
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.worker.attempt.agent_runs import data
from tests.worker.attempt.executed_runs import scripted


def of_names(count: int) -> dict[str, Any]:
    """Build a schema with as many patterns; all but 32 are left out."""
    name = {"type": "string", "pattern": "^[A-Z]"}
    return {"type": "object", "properties": {f"p{number}": name for number in range(count)}}


def tools(count: int, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    described = {"description": "x", "parameters": parameters, "client": True}
    return [{"name": f"t{number}", **described} for number in range(count)]


#: Nothing can be checked against it.
ASTRAY = {"type": "object", "properties": {"p0": {"$ref": "#/$defs/none"}}}
UNSUPPORTED = "This release of the server does not support the run's `output_schema`: "


def published(stored: StoredRuns, **definition: Any) -> str:
    """Publish a persona as an earlier release did, which this one would refuse to; return its id.

    It may override all that a run may have.
    """
    with pytest.raises(InvalidPersona):
        personas.read("mine", "1", definition)
    definition["overrides"] = ["output_schema", "tools"]
    with stored.connections.transaction() as tx:
        row = published_personas.publish(tx, stored.actor, "mine", "1", definition)
    return f"{row.key}@{row.version}"


def test_an_output_is_validated_as_far_as_it_can_be(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """What a schema says that is not checked any more is left out, and the rest applies."""
    persona_id = published(stored, output_schema=of_names(40))
    run_id = scripted(stored, {"output": {"p39": "7"}, "invalid": 1}, persona_id=persona_id)

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    refused, accepted = data(stored, run_id, "message.completed")
    assert refused["output_errors"]
    assert {"p39": "7"} == json.loads(accepted["content"])


@pytest.mark.parametrize("is_override", [False, True])
def test_an_output_that_nothing_can_validate_fails_the_run_before_it_costs(
    stored: StoredRuns, process: WorkerProcess, *, is_override: bool
) -> None:
    """The schema may be the persona's, or one that a queued run has in its place."""
    persona_id = published(stored, output_schema=ASTRAY)
    options = {"output_schema": output_schema.to_text(ASTRAY)} if is_override else None
    run_id = scripted(stored, {"say": "{}"}, persona_id=persona_id, options=options)

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert ("output.invalid", 0) == (row["error_code"], row["output_tokens"])
    assert row["error_message"] == f"{UNSUPPORTED}Unresolvable `$ref`: #/$defs/none"


def test_client_tools_whose_patterns_are_too_many_together_are_called(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """Each alone is checked by all of its patterns."""
    persona_id = published(stored, client_tools=tools(3, of_names(20)))
    calls = [{"tool": "t2", "args": {"p0": "7"}}, {"tool": "t2", "args": {"p0": "Zoe"}}]
    run_id = scripted(stored, *calls, persona_id=persona_id)

    execution.execute(process, run_id)

    assert RunState.WAITING == stored.state(run_id)
    [refused] = data(stored, run_id, "tool.result")
    assert "does not match" in refused["output"]


def test_a_client_tool_that_cannot_be_checked_is_not_called(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The model reads why, and gives its answer without the tool."""
    persona_id = published(stored, client_tools=tools(1, ASTRAY))
    run_id = scripted(stored, {"tool": "t0", "args": {}}, {"say": "Ok."}, persona_id=persona_id)

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    [refused] = data(stored, run_id, "tool.result")
    assert "not a usable schema: Unresolvable" in refused["output"]
