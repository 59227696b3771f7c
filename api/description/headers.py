"""Headers that endpoints read and write, as the description shows them."""

from typing import Any

from arkloop.api.http.preferences import MAX_WAIT_SECONDS

REQUEST: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {
        "description": "Repeating the request with the same key returns the first response.",
        "schema": {"type": "string", "pattern": r"^[\x20-\x7e]{1,255}$"},
    },
    "Idempotency-Key of a secret": {
        "name": "Idempotency-Key",
        "description": "Accepted, but nothing is stored: a repeated request gets a new token.",
        "schema": {"type": "string", "pattern": r"^[\x20-\x7e]{1,255}$"},
    },
    "Prefer": {
        "description": (
            f"`wait=N`, N up to {MAX_WAIT_SECONDS}: respond when the run ends or waits for input."
        ),
        "schema": {"type": "string", "examples": ["wait=30"]},
    },
    "Last-Event-ID": {
        "description": "The `seq` of the last event that the client has; the larger cursor counts.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
    },
    "Last-Event-ID of a thread": {
        "name": "Last-Event-ID",
        "description": "The `id` of the last frame that the client has: `<run>:<seq>`.",
        "schema": {"type": "string", "pattern": "^[0-9a-f-]{36}:[0-9]{1,18}$"},
    },
}

RESPONSE: dict[str, dict[str, Any]] = {
    "X-Trace-Id": {
        "description": "The caller's trace id from `traceparent`, else a new one.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "Location": {
        "description": "The path of what was created.",
        "schema": {"type": "string"},
    },
    "Idempotency-Replayed": {
        "description": "The response is that of the first request with this key.",
        "schema": {"const": "true"},
    },
    "Preference-Applied": {
        "description": "The seconds that the request was allowed to wait.",
        "schema": {"type": "string"},
    },
    "X-Next-Cursor": {
        "description": "If there are more rows: send it as `before` for the next page.",
        "schema": {"type": "string"},
    },
    "X-Stream-Cursor": {
        "description": "The last event that the body shows: `after` for the thread's stream.",
        "schema": {"type": "string", "pattern": "^[0-9a-f-]{36}:[0-9]{1,19}$"},
    },
    "Link": {
        "description": "The address of the next page.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which a repetition may succeed.",
        "schema": {"type": "integer"},
    },
    "RateLimit": {
        "description": "Where requests are limited: what remains (`r`) for how many seconds (`t`).",
        "schema": {"type": "string", "examples": ['"org";r=5999;t=42']},
    },
    "RateLimit-Policy": {
        "description": "Where requests are limited: how many (`q`) in how many seconds (`w`).",
        "schema": {"type": "string", "examples": ['"org";q=6000;w=60']},
    },
    "WWW-Authenticate": {
        "description": "`Bearer`.",
        "schema": {"type": "string"},
    },
    "Allow": {"description": "The methods that there are.", "schema": {"type": "string"}},
}
