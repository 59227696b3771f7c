"""Arguments whose names Claude's API refuses, and how a model gets to know them all the same.

The API refuses a request if a property at the top of a tool's schema has such a name: "tools.14.
custom.input_schema.properties: Property keys should match pattern '^[a-zA-Z0-9_.-]{1,64}$'". They
are common where tools are made of an API's parameters: `filter[name]`, `$select`. What a model
writes as arguments is not checked there, and other vendors accept these names.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from arkloop.worker.contract.messages import ToolSpec

_ACCEPTED = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_FURTHER = "Further arguments, to be given by exactly these names, as JSON Schema:"


def tools_for(model: str, tools: Iterable[ToolSpec]) -> Iterable[ToolSpec]:
    """Return the tools as the model's API accepts them, whichever server passes them on to it."""
    return map(with_accepted_names, tools) if "claude" in model.lower() else tools


def with_accepted_names(tool: ToolSpec) -> ToolSpec:
    """Return the tool with the refused properties in its description, where the API reads none."""
    schema = tool.parameters
    properties = schema.get("properties")
    if not isinstance(properties, dict) or all(map(_ACCEPTED.fullmatch, properties)):
        return tool
    refused = {name: properties[name] for name in properties if not _ACCEPTED.fullmatch(name)}
    further: dict[str, Any] = {"properties": refused}
    # They would exclude what only the description has.
    closing = ("additionalProperties", "unevaluatedProperties")
    kept = {keyword: schema[keyword] for keyword in schema if keyword not in closing}
    kept["properties"] = {name: properties[name] for name in properties if name not in refused}
    if isinstance(required := schema.get("required"), list):
        kept["required"] = [name for name in required if name not in refused]
        further["required"] = [name for name in required if name in refused]
    text = f"{tool.description}\n\n{_FURTHER} {json.dumps(further, ensure_ascii=False)}"
    return replace(tool, description=text, parameters=kept)
