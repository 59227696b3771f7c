"""The HTTP tools of an org, as tools of a run."""

import itertools
import json
import logging
import random
import re
import time
from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from arkloop.shared import fault_points, times
from arkloop.shared.catalog import http_tools
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.events.plain import plain
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.security import exchange
from arkloop.shared.security.egress import Policy
from arkloop.shared.security.encryption import CannotOpen, NoEncryptionKey
from arkloop.shared.security.exchange import Lost, NotSent, Response
from arkloop.shared.security.signatures import signed_headers
from arkloop.shared.storage.connections import Connections
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.http_tools import results
from arkloop.worker.tools import CallInfo, Tool, ToolFailed

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 1_048_576
MAX_RESPONSE_BYTES = 1_048_576
#: A call keeps its time itself; one that does not is abandoned after this.
GRACE_SECONDS = 2.0
#: Seconds before each repetition of a request, at most; the last one before all that follow.
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)
#: Repetitions of a request that the server may have got. A server that is out of reach is tried
#: until the call's time is over.
MAX_REPETITIONS = 5

NO_DESCRIPTOR = "Not called: the worker has no file descriptor left."
#: Statuses by which a server asks for the same request again.
_AGAIN = (429, 503)
_SECONDS = re.compile("[0-9]{1,6}")


def tools_of(connections: Connections, org_id: UUID, names: Collection[str]) -> dict[str, Tool]:
    """Return the org's tools of these names; those that were deleted are left out.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    if not names:
        return {}
    with connections.reading() as sql:
        rows = http_tools.of_names(sql, org_id, names)
    if missing := set(names) - {row.name for row in rows}:
        log.warning("unknown tool of the persona: %s", ", ".join(sorted(missing)))
    return {row.name: _tool(connections, row) for row in rows}


def _tool(connections: Connections, row: Row[Any]) -> Tool:
    def call(context: ToolContext, info: CallInfo, arguments: Mapping[str, Any]) -> str:
        return _Call(connections, _current(connections, row), info, arguments).make(context)

    return Tool(
        spec=ToolSpec(row.name, row.description, http_tools.parameters_of(row)),
        function=call,
        idempotent=row.idempotent,
        timeout_seconds=row.timeout_seconds + GRACE_SECONDS,
        http_tool={"tool_id": str(row.id)},
        result_from=ResultSource.HTTP,
    )


def _current(connections: Connections, row: Row[Any]) -> Row[Any]:
    """Return the tool as it is now: a changed address or secret applies at once.

    Raises:
        ToolFailed: it was deleted meanwhile.
    """
    try:
        with connections.reading() as sql:
            found = http_tools.of_id(sql, row.id)
    except Unavailable:
        return row
    if found is None:
        raise ToolFailed(f"Not called: the tool {row.name!r} was deleted.")
    return found


class _Call:
    """A call: a request, and its repetitions."""

    def __init__(
        self,
        connections: Connections,
        row: Row[Any],
        info: CallInfo,
        arguments: Mapping[str, Any],
    ) -> None:
        self._row, self._info = row, info
        self._policy = Policy.of(connections.settings.allowed_networks)
        self._body = _body(row.name, info, arguments)
        self._headers, self._secrets = _opened(connections.settings, row)
        self._ends = time.monotonic() + row.timeout_seconds
        self._may_be_done = False

    def make(self, context: ToolContext) -> str:
        """Make the call; returns what the model reads.

        It is repeated only where the tool cannot have acted on it, for as long as the call's time
        allows, or where the tool is idempotent, `MAX_REPETITIONS` times.

        Raises:
            ToolFailed: the tool could not be called, or says that it failed.
            ResultPending: the tool sends the result later.
            StopRun, LeaseLost: by `context`.
            Unavailable: this process has no file descriptor, and the tool is idempotent.
        """
        repetitions = 0
        for attempt in itertools.count():
            refused = None
            try:
                response = self._send(context)
            except Unavailable:
                if self._row.idempotent:
                    raise  # another worker calls it
                failure, may_repeat, asked = NO_DESCRIPTOR, True, None
            except NotSent as error:
                failure, may_repeat, asked = f"Not called: {error}", error.may_pass, None
            except Lost as error:
                self._may_be_done = True
                failure, asked = str(error), None
                may_repeat = self._row.idempotent and repetitions < MAX_REPETITIONS
                repetitions += 1
            else:
                fault_points.reach("worker.in_tool")
                if not self._row.idempotent or response.status not in _AGAIN:
                    break
                refused, asked = response, _seconds(response.retry_after)
                may_repeat = repetitions < MAX_REPETITIONS
                repetitions += 1
            pause = PAUSES[min(attempt, len(PAUSES) - 1)] * random.uniform(0.5, 1)
            seconds = max(asked or 0, pause)
            if not may_repeat or time.monotonic() + seconds >= self._ends:
                if refused is not None:
                    failure = results.refusal_of(refused)
                raise ToolFailed(failure + (results.UNKNOWN if self._may_be_done else ""))
            context.wait(seconds)
        return results.output_of(response)

    def _send(self, context: ToolContext) -> Response:
        """Send the request, signed with the time of now.

        Raises:
            NotSent, Lost, Unavailable
        """
        signature = signed_headers(
            self._secrets, self._info.idempotency_key, int(time.time()), self._body
        )
        return exchange.post(
            context.aborting,
            self._row.url,
            self._policy,
            {**self._headers, **self._info.headers(), **signature},
            self._body,
            max(0.001, self._ends - time.monotonic()),
            most_bytes=MAX_RESPONSE_BYTES,
        )


def _body(name: str, info: CallInfo, arguments: Mapping[str, Any]) -> bytes:
    """Return the request's body. Raises: ToolFailed: it is too long."""
    data = {"name": name, "arguments": dict(arguments), **info.wire()}
    message = {"type": "tool.call", "timestamp": times.rfc3339(times.now()), "data": data}
    body = json.dumps(plain(message), ensure_ascii=False, separators=(",", ":")).encode()
    if len(body) > MAX_REQUEST_BYTES:
        raise ToolFailed(f"Not called: the request has more than {MAX_REQUEST_BYTES} bytes.")
    return body


def _opened(settings: Settings, row: Row[Any]) -> tuple[dict[str, str], list[str]]:
    """Decrypt the headers and the secrets. Raises: ToolFailed: this worker cannot."""
    try:
        return http_tools.headers_of(settings, row), http_tools.secrets_of(settings, row)
    except (NoEncryptionKey, CannotOpen) as error:
        log.error("cannot decrypt the secrets of tool %s: %s", row.id, error)
        raise ToolFailed("Not called: the tool's secrets cannot be decrypted here.") from None


def _seconds(retry_after: str | None) -> float | None:
    """Read a `Retry-After` in seconds; dates are ignored."""
    return float(retry_after) if retry_after and _SECONDS.fullmatch(retry_after) else None
