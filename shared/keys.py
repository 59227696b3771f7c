"""Every Redis key and channel of ours. Celery's own keys stand beside them in the broker.

| name                    | type    | lives               | written by       | read by       |
| ----------------------- | ------- | ------------------- | ---------------- | ------------- |
| `run:{id}:events`       | stream  | run's end + TTL     | whoever appends  | web           |
| `run:{id}:news`         | channel | –                   | whoever appends  | web           |
| `run:{id}:cancel`       | string  | CANCEL_TTL_SECONDS  | web, the sweep   | worker        |
| `run:{id}:input`        | string  | INPUT_TTL_SECONDS   | web              | worker        |
| `worker:{id}:signals`   | channel | –                   | web              | that worker   |
| `route:{id}:pause`      | string  | as its 429 says     | worker           | worker        |
| `route:{id}:pause:{org}`| string  | as its 429 says     | worker           | worker        |
| `route-limits/…`        | string  | two minutes         | worker           | worker        |

All of it may vanish at any moment: Postgres has the truth.
"""

from uuid import UUID

#: Where the library `limits` keeps its counts: `route-limits/…`.
ROUTE_LIMITS = "route-limits"
CANCEL_TTL_SECONDS = 3600
INPUT_TTL_SECONDS = 60
#: A stream whose run never ends (its worker and Redis both lost) still goes some day.
LIVE_STREAM_TTL_SECONDS = 7 * 86400


def events(run_id: UUID | str) -> str:
    """Stream; entry ids are `<seq>-0`, fields `type` and `payload`."""
    return f"run:{run_id}:events"


def news(run_id: UUID | str) -> str:
    """Channel; a message means: there are events up to this seq."""
    return f"run:{run_id}:news"


def cancel(run_id: UUID | str) -> str:
    """Set while a cancel of an executing run is under way; holds the id of who wants it."""
    return f"run:{run_id}:cancel"


def input_(run_id: UUID | str) -> str:
    """Set for a moment when an input was accepted; holds its request id."""
    return f"run:{run_id}:input"


def worker_signals(worker_id: UUID | str) -> str:
    """Channel; messages are `cancel <run_id> <user_id>` and `input <run_id>`."""
    return f"worker:{worker_id}:signals"


def route_pause(route_id: str, org_id: UUID | None = None) -> str:
    """Set while the route's provider accepts no calls: of this org, or (None) of any."""
    return f"route:{route_id}:pause" + (f":{org_id}" if org_id else "")
