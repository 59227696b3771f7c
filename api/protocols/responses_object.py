"""The response object of OpenAI's Responses API: what it shows of a run besides its events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

Object = dict[str, Any]

#: Causes of a failed run that OpenAI has a code of its own for.
_ERROR_CODES = {
    "provider.rate_limited": "rate_limit_exceeded",
    "provider.invalid_request": "invalid_prompt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """The facts about a run that all its responses share; of these only `metadata` ever changes.

    `options` are the run's overrides as they were given. `client_tools` are the names of all tools
    that the client executes.
    """

    run_id: UUID
    created_at: int  # Unix time
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    client_tools: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    end_user_id: str | None = None
    previous_response_id: str | None = None


def response_object(facts: RunFacts, response_id: str, **changes: Any) -> Object:
    """Return the whole object, queued and without output but for the `changes`."""
    settings = facts.options.get("model_settings") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": facts.created_at,
        "completed_at": None,
        "status": "queued",
        "background": True,
        "error": None,
        "incomplete_details": None,
        "instructions": facts.options.get("instructions"),
        "max_output_tokens": (facts.options.get("limits") or {}).get("max_output_tokens"),
        "max_tool_calls": None,
        "model": facts.model,
        "output": [],
        "parallel_tool_calls": settings.get("parallel_tool_calls", True),
        "previous_response_id": facts.previous_response_id,
        "prompt_cache_key": None,
        "reasoning": {"effort": settings.get("reasoning_effort"), "summary": "auto"},
        "safety_identifier": facts.end_user_id,
        "service_tier": "default",
        "store": True,
        "temperature": settings.get("temperature", 1.0),
        "text": _text(facts.options.get("output_schema"), settings.get("verbosity")),
        "tool_choice": _tool_choice(settings.get("tool_choice")),
        "tools": [_tool(tool) for tool in facts.options.get("tools") or ()],
        "top_p": settings.get("top_p", 1.0),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "truncation": "auto",
        "usage": None,
        "metadata": dict(facts.metadata),
        **changes,
    }


def usage_object(total: Mapping[str, Any], before: Mapping[str, Any]) -> Object:
    """Return the usage of a response, by the run's at its end and at its beginning."""
    used = {name: total.get(name, 0) - before.get(name, 0) for name in _TOKENS}
    return {
        "input_tokens": used["input_tokens"],
        "input_tokens_details": {
            "cached_tokens": used["cache_read_tokens"],
            "cache_write_tokens": used["cache_write_tokens"],
        },
        "output_tokens": used["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": used["reasoning_tokens"]},
        "total_tokens": used["input_tokens"] + used["output_tokens"],
    }


_TOKENS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


def error_object(error: Mapping[str, Any]) -> Object:
    """Return the error of a failed response; `type` has our own code."""
    code = _ERROR_CODES.get(error["code"], "server_error")
    return {"code": code, "message": error["message"], "type": error["code"], "param": None}


def _text(schema: Any, verbosity: str | None) -> Object:
    shown: Object = {"format": {"type": "text"}}
    if schema is not None:
        shown["format"] = {
            "type": "json_schema",
            "name": "output",
            "description": None,
            "schema": schema,
            "strict": True,
        }
    return shown if verbosity is None else {**shown, "verbosity": verbosity}


def _tool_choice(choice: Any) -> Any:
    return {"type": "function", **choice} if isinstance(choice, Mapping) else choice or "auto"


def _tool(tool: Mapping[str, Any]) -> Object:
    shown = {name: tool[name] for name in ("name", "description", "parameters")}
    return {"type": "function", **shown, "strict": True}
