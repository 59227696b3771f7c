"""Personas that tests publish."""

from typing import Any

from tests.clients import User

PATH = "/v1/personas"
DEFAULTS: dict[str, Any] = {
    "agent": None,
    "system_prompt": "",
    "route_id": None,
    "fallback_route_ids": [],
    "tools": [],
    "client_tools": [],
    "mcp": [],
    "mcp_tool_search": False,
    "tool_workers": [],
    "require_approval": [],
    "approved_by": "anyone",
    "delegates": [],
    "max_depth": 5,
    "max_active_children": 8,
    "max_steps": 32,
    "max_equal_turns": 6,
    "max_output_tokens": None,
    "model_settings": {},
    "max_result_tokens": 16_000,
    "compaction": "truncate",
    "max_cost_usd": None,
    "max_cost_usd_per_month": None,
    "timeout_seconds": 900.0,
    "input_expires_seconds": 86_400.0,
    "on_input_expired": "fail",
    "stream_tool_arguments": False,
    "output_schema": None,
    "overrides": [],
    "on_limit": "answer",
}


def published(user: User, **fields: Any) -> dict[str, Any]:
    response = user.post(PATH, fields)
    assert 201 == response.status_code, response.text
    return dict(response.json or {})
