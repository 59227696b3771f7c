"""Recorded runs as streams of Open Responses, by the specification that `llm-comply` contains."""

import json
from pathlib import Path

import llm_comply
import pytest
from llm_comply.schema import SpecLoader

from tests.api.protocols.recorded_runs import NAMES
from tests.api.protocols.test_responses_projection import data_of, responses_of

_SPECIFICATION = Path(llm_comply.__file__).parent / "specs" / "openresponses.json"


@pytest.fixture(scope="module")
def open_responses() -> dict[str, str]:
    """The schemas of Open Responses, by the type of the event that they describe.

    `llm-comply` names them in a table of its own, which lacks the deltas of reasoning.
    """
    schemas = json.loads(_SPECIFICATION.read_text())["components"]["schemas"]
    types = {name: schema.get("properties", {}).get("type", {}) for name, schema in schemas.items()}
    return {
        of.get("enum", [""])[0]: name
        for name, of in types.items()
        if name.endswith("StreamingEvent")
    }


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver")
@pytest.mark.parametrize("name", NAMES)
def test_every_frame_is_an_event_of_open_responses(
    name: str, open_responses: dict[str, str]
) -> None:
    """All but what OpenAI's API alone has: calls of the agent's own tools, and their approvals."""
    specification = SpecLoader(str(_SPECIFICATION))
    checked = set()
    for _, frames in responses_of(name):
        for event in data_of(frames):
            kind, item = event["type"], event.get("item", {})
            if kind.startswith("response.mcp_") or item.get("type", "").startswith("mcp_"):
                continue
            if "response" in event:
                output = event["response"]["output"]
                event["response"]["output"] = [
                    item for item in output if not item["type"].startswith("mcp_")
                ]
            assert [] == specification.validate(event, open_responses[kind]), event
            checked.add(kind)
    assert {"response.created", "response.in_progress"} < checked
