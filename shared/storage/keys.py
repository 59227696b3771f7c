"""Every Redis key and channel of this service. Celery's own stand beside them in the broker.

| name                             | type    | lives                | written by     | read by     |
| -------------------------------- | ------- | -------------------- | -------------- | ----------- |
| `{epoch}:run:{id}:events`        | stream  | run's end + TTL      | who appends    | web         |
| `{epoch}:run:{id}:news`          | channel | –                    | who appends    | web         |
| `{epoch}:thread:{id}:runs`       | channel | –                    | worker         | web         |
| `{epoch}:run:{id}:cancel`        | string  | CANCEL_TTL_SECONDS   | web, the sweep | worker      |
| `{epoch}:run:{id}:input`         | string  | INPUT_TTL_SECONDS    | web            | worker      |
| `{epoch}:worker:{id}:signals`    | channel | –                    | web            | that worker |
| `{epoch}:polls`                  | channel | –                    | web, worker    | web         |
| `{epoch}:route:{id}:pause`       | string  | as its 429 says      | worker         | worker      |
| `{epoch}:route:{id}:pause:{org}` | string  | as its 429 says      | worker         | worker      |
| `{epoch}:route:{id}:context`     | string  | CONTEXT_TTL_SECONDS  | worker         | worker      |
| `{epoch}:position`               | string  | POSITION_TTL_SECONDS | all            | all         |
| `{epoch}:probe`                  | both    | PROBE_MILLISECONDS   | web            | –           |
| `arkloop-doctor:probe`           | both    | PROBE_MILLISECONDS   | the doctor     | –           |
| `{installation}:route-limits/…`  | string  | two minutes          | worker         | worker      |
| `{installation}:password-attempts/…` | string | five minutes      | web            | web         |
| `{installation}:provider-attempts/…` | string | a minute          | web            | web         |
| `{installation}:request-limits:…` | string | two minutes         | web            | web         |
| `{installation}:reports:{org}`   | string  | the org's rest       | web            | web         |
| `{installation}:denials/…`       | string  | one hour             | web            | web         |
| `{installation}:mcp-refresh:…`   | string  | LEASE_SECONDS        | worker         | worker      |
| `{installation}:streams:{id}`    | hash    | LEASE_SECONDS        | web            | web         |

All of it may vanish at any moment: Postgres has the truth. `shared/storage/epoch.py` says what the
installation is (one database) and what its epoch is (one history of it).
"""

import hashlib
from uuid import UUID

CANCEL_TTL_SECONDS = 3600
INPUT_TTL_SECONDS = 60
#: A server may be started again with a larger context.
CONTEXT_TTL_SECONDS = 86_400
#: A stream whose run never ends (its worker and Redis both lost) still goes some day.
LIVE_STREAM_TTL_SECONDS = 7 * 86400
#: The answers of Redis count alone: nobody reads a probe, and nobody subscribes to its channel.
PROBE_MILLISECONDS = 100
#: The command knows Redis also where it cannot learn the epoch from Postgres.
DOCTOR_PROBE = "arkloop-doctor:probe"
#: As long as anything else of its epoch can live.
POSITION_TTL_SECONDS = LIVE_STREAM_TTL_SECONDS


class Keys:
    """The names that one process uses; they change with the epoch while it runs."""

    def __init__(self) -> None:
        #: Both are empty until the first connection to Postgres.
        self.installation = ""
        self.epoch = ""
        #: The latest timeline of Postgres' log that a connection has led to, by cluster.
        self.timelines: dict[str, int] = {}
        #: Which statement of `epoch.py` Postgres has answered.
        self.identity_statement = 0

    def events(self, run_id: UUID | str) -> str:
        """Stream; entry ids are `<seq>-0`, fields `type` and `payload`."""
        return f"{self.epoch}:run:{run_id}:events"

    def news(self, run_id: UUID | str) -> str:
        """Name the channel whose messages say up to which seq the run has events, or also bring
        the last of them: see `event_log.news_of`.
        """
        return f"{self.epoch}:run:{run_id}:news"

    def runs(self, thread_id: UUID | str) -> str:
        """Name the channel whose messages are the positions of runs that start in the thread."""
        return f"{self.epoch}:thread:{thread_id}:runs"

    def cancel(self, run_id: UUID | str) -> str:
        """Name the key set while an executing run is being cancelled.

        It has the user's id, followed by ` plain` if the run's row names no cause.
        """
        return f"{self.epoch}:run:{run_id}:cancel"

    def input_(self, run_id: UUID | str) -> str:
        """Set for a moment when an input was accepted; holds its request id."""
        return f"{self.epoch}:run:{run_id}:input"

    def worker_signals(self, worker_id: UUID | str) -> str:
        """Name the channel of the signals to a worker process.

        They are `cancel <run_id> <user_id>`, followed by ` plain` if the run's row names no cause,
        `input <run_id>` and `call_ended <run_id>`.
        """
        return f"{self.epoch}:worker:{worker_id}:signals"

    def polls(self) -> str:
        """Name the channel whose messages wake long polls: `one` or `all`, a topic, a detail."""
        return f"{self.epoch}:polls"

    def route_pause(self, route_id: str, org_id: UUID | None = None) -> str:
        """Set while the route's provider accepts no calls: of this org, or (None) of any."""
        return f"{self.epoch}:route:{route_id}:pause" + (f":{org_id}" if org_id else "")

    def route_context(self, route_id: str) -> str:
        """Set to the mark of a server, a model, the setting of the route, and the size found."""
        return f"{self.epoch}:route:{route_id}:context"

    def route_limits(self) -> str:
        """Name the prefix of the keys that the library `limits` uses."""
        return f"{self.installation}:route-limits"

    def password_attempts(self) -> str:
        """Name the prefix of the keys that the library `limits` uses."""
        return f"{self.installation}:password-attempts"

    def provider_attempts(self) -> str:
        """Name the prefix of the keys that the library `limits` uses."""
        return f"{self.installation}:provider-attempts"

    def request_limits(self) -> str:
        """Name the prefix of the keys that the library `limits` uses."""
        return f"{self.installation}:request-limits"

    def reports(self, org_id: UUID) -> str:
        """Set for as long as the org has to rest from its reports, less a burst."""
        return f"{self.installation}:reports:{org_id}"

    def denials(self) -> str:
        """Name the prefix of the keys that the library `limits` uses."""
        return f"{self.installation}:denials"

    def streams(self, id_: UUID) -> str:
        """Name the hash of open streams of an org or an API key: process → `<number>:<expiry>`."""
        return f"{self.installation}:streams:{id_}"

    def mcp_refresh(self, config_id: UUID, owner: str) -> str:
        """Set while a worker refreshes the token of this owner at an MCP server."""
        # Owners are named by customers, at any length.
        hash_ = hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.installation}:mcp-refresh:{config_id}:{hash_}"

    def probe(self) -> str:
        """Name the key, and the channel, by which a process tests whether Redis does its work."""
        return f"{self.epoch}:probe"

    def position(self) -> str:
        """Name the key of the furthest position in Postgres' log that a process has seen."""
        return f"{self.epoch}:position"


def subject_of(channel: str) -> str:
    """Return the id of the run or thread in the name of its channel."""
    return channel.split(":")[-2]
