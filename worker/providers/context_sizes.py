"""The size of a model's context, as its server reports it.

There is no common field; these are the servers' own: `max_model_len` of vLLM, `context_length` of
OpenRouter and Together, `context_window` of Groq, `max_context_length` of Mistral and LM Studio,
`max_input_tokens` of Anthropic, each in the list of models; `n_ctx` of llama.cpp in `/props`, for
one of its slots.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx2

from arkloop.shared import machine
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.security.egress import Policy, Refused
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers.abortable_http import AbortableClient
from arkloop.worker.providers.sdk_client import address

#: Of a server, for each answer; a run waits for it.
SECONDS = 3
MAX_BYTES = 4 * 1024 * 1024
MAX_TOKENS = 100_000_000
_FIELDS = (
    "max_model_len",
    "context_length",
    "context_window",
    "max_context_length",
    "max_input_tokens",
)


def ask(route: Route, egress: Policy | None, context: ToolContext) -> int | None:
    """Ask the route's server for the context of its model; None if it does not say.

    Raises:
        StopRun: the run has to stop meanwhile, for which the connection is closed.
        MemoryError, Unavailable: this process lacks what a connection takes.
    """
    if route.base_url is None or route.platform is not None:
        return None  # the price library knows the vendors' own
    key = route.api_key or "none"
    credentials = {"authorization": f"Bearer {key}", "x-api-key": key}
    quick = replace(route, first_byte_seconds=SECONDS, idle_seconds=SECONDS)
    try:
        url = address(route, egress).rstrip("/")
        root = url.removesuffix("/v1")
        models = url if route.provider == "openai" else f"{root}/v1"
        with (
            AbortableClient(quick, egress, events=False, credentials=credentials) as client,
            context.aborting(client.abort),
        ):
            listed = _get(client, f"{models}/models").get("data")
            if (size := _of_model(listed, route.model)) is not None:
                return size
            settings = _get(client, f"{root}/props").get("default_generation_settings")
            return _size(settings, "n_ctx")
    except (httpx2.HTTPError, Refused, ProviderError, ValueError, RecursionError) as error:
        machine.raise_shortage(error)
        return None


def _get(client: AbortableClient, url: str) -> Mapping[str, Any]:
    body, deadline = b"", time.monotonic() + SECONDS
    # Without an egress policy the client sends what it is given.
    headers = {"anthropic-version": "2023-06-01", **client.credentials}
    with client.stream("GET", url, headers=headers) as response:
        if response.is_success:
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_BYTES or time.monotonic() > deadline:
                    return {}
    found = json.loads(body or b"{}")
    return found if isinstance(found, dict) else {}


def _of_model(listed: Any, model: str) -> int | None:
    found = listed if isinstance(listed, list) else []
    entries = [entry for entry in found if isinstance(entry, dict)]
    for entry in entries:
        if entry.get("id") == model or len(entries) == 1:
            return next((size for name in _FIELDS if (size := _size(entry, name))), None)
    return None


def _size(fields: Any, name: str) -> int | None:
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if type(value) is int and 0 < value <= MAX_TOKENS else None
