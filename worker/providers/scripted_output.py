"""The structured output of the scripted model: what an `output` step of a script stands for."""

import json
from collections.abc import Mapping
from typing import Any

from arkloop.worker.contract.messages import ModelRequest
from arkloop.worker.providers import output_modes
from arkloop.worker.providers.output_modes import FINAL_TOOL

_INVALID = "This is no output."


def schema_of(request: ModelRequest) -> Mapping[str, Any] | None:
    """Return the schema of the output that the request asks for."""
    tools = {tool.name: tool.parameters for tool in request.tools}
    schema: Mapping[str, Any] | None = request.settings.get(output_modes.SETTING)
    return tools.get(FINAL_TOOL) if schema is None else schema


def answer(
    step: Mapping[str, Any], request: ModelRequest, said: str, repairs: int
) -> dict[str, Any]:
    """Return the step that an `output` step stands for, after `repairs` answers in vain.

    Strings of an output that is made up are `said`. A last call at a limit may come before the
    script's end, where `repairs` is negative.
    """
    output = step["output"]
    if max(repairs, 0) < step.get("invalid", 0):
        output = _INVALID
    elif output is None:
        output = _example(schema_of(request) or {}, said)
    if not request.answer_only and any(tool.name == FINAL_TOOL for tool in request.tools):
        return {"tool": FINAL_TOOL, "args": output}
    text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    return {"say": text, "delay_ms": step.get("delay_ms", 0)}


def _example(schema: Mapping[str, Any], text: str) -> Any:
    """Return a value that fits most schemas, with `text` for strings."""
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    kind = schema.get("type", "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {name: _example(of, text) for name, of in schema.get("properties", {}).items()}
        case "array":
            return [_example(schema.get("items", {}), text)] * max(schema.get("minItems", 1), 1)
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return True
        case "null":
            return None
    return text
