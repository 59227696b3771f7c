"""Responses of `/v1/ui/chat`: a run as a stream of chunks, from one of its waits to the next."""

import json
from functools import partial
from uuid import UUID

from flask import Response
from sqlalchemy import Connection

from arkloop.api.endpoints.following import hub
from arkloop.api.http.current import actor, connections
from arkloop.api.protocols.ai_sdk_answers import Waits
from arkloop.api.protocols.ai_sdk_dialects import Dialect, ends_response
from arkloop.api.protocols.ai_sdk_projection import DONE, AiSdkProjection
from arkloop.api.protocols.projection import frames_of, projected, read_events
from arkloop.api.streaming import sse
from arkloop.shared.errors import RunNotFound
from arkloop.shared.events import event_log
from arkloop.shared.runs import pending_calls, queries

HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
RUN_HEADER, TAIL_HEADER = "x-workflow-run-id", "x-workflow-stream-tail-index"
_FINISH = b'data: {"type":"finish"}\n\n'
#: For a client that has more chunks than there are. It may have followed the chat while another
#: run was the newest one, and without a `finish` it would try again at once, and without end.
_BEYOND = (
    b'data: {"type":"error","errorText":"The answer that was cut off cannot be resumed from here; '
    b'load the chat again."}\n\n' + _FINISH
)


def stream(
    run_id: UUID,
    dialect: Dialect,
    *,
    after: int = 0,
    until: int | None = None,
    start: str | None = None,
    is_new: bool = False,
    has_bare_ids: bool = False,
) -> Response:
    """Stream the response of a run that begins after `after` waits, from its chunk `start` on."""
    until = after if until is None else until
    passed = (after, until) if until > after else (after,) if after else ()
    # By this id the same response is resumed, whatever was answered since.
    headers = {**HEADERS, RUN_HEADER: ".".join(map(str, (run_id, *passed)))}
    make = partial(AiSdkProjection, run_id, dialect, after, until, has_bare_ids=has_bare_ids)
    skip = int(start or 0)
    if skip < 0 or after:
        hub().heads.get_seen(run_id, actor())
    if not is_new:
        with connections().reading() as sql:
            # They may have come with a reply to a wait that this dialect does not count.
            early = pending_calls.early_ids(sql, [run_id])
            make = partial(make, early_calls=early.get(run_id, frozenset()))
            if after and waits_of(sql, run_id, dialect).count < after:
                raise RunNotFound()
    if skip < 0:
        count = _count(run_id, make())
        headers[TAIL_HEADER] = str(count - 1)
        skip = max(0, count + skip)
    return projected(
        run_id, actor(), make(), skip=skip, beyond=_BEYOND, headers=headers, is_new=is_new
    )


def _count(run_id: UUID, projection: AiSdkProjection) -> int:
    """Return the number of chunks that there are so far."""
    pages = read_events(run_id)
    events = (json.loads(event.payload) for _, page in pages for event in page)
    return sum(1 for _ in frames_of(events, projection))


def nothing(start: str | None) -> Response:
    """Return the response where nothing is active.

    `WorkflowChatTransport`, which alone sends `startIndex`, takes a 204 for an error, and tries
    again until it is sent a `finish`.
    """
    if start is None:
        return Response(status=204)
    return Response([_FINISH + DONE], headers={**sse.HEADERS, **HEADERS})


def waits_of(sql: Connection, run_id: UUID, dialect: Dialect) -> Waits:
    """Return the waits of a run, of which the row says whether the last one is open."""
    waits = Waits(*event_log.waits(sql, run_id), dialect)
    if waits.is_open:
        # An answer has no event before a worker claims the run, and results of the client have none
        # while those of HTTP tools are missing. The run's row has both at once.
        pending = queries.get(sql, actor(), run_id)["pending_input"]
        waits.is_open = pending is not None and ends_response(pending, dialect)
    return waits
