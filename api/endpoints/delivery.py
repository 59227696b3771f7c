"""The response to a request that creates a run: its id, its events, or the run when it is at rest.

`Accept: text/event-stream` requests the events, `Prefer: wait=N` the run.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from flask import Response, json, jsonify, request
from sqlalchemy import RowMapping

from arkloop.api.auth.bearer import authenticator
from arkloop.api.endpoints.following import (
    EVENT_STREAM,
    EventFrames,
    hub,
    reserve_stream,
    streaming,
    watch_of,
)
from arkloop.api.endpoints.run_types import AwaitedRun, CreatedRun
from arkloop.api.endpoints.runs import shown_in_full
from arkloop.api.http import audited
from arkloop.api.http.current import actor, connections
from arkloop.api.http.preferences import wait_seconds
from arkloop.api.streaming.rest import wait_for_rest
from arkloop.shared.actors import Actor
from arkloop.shared.errors import InvalidRequest, NotFound, Unavailable
from arkloop.shared.runs import queries
from arkloop.shared.runs.states import status_of
from arkloop.shared.storage.connections import Connections

log = logging.getLogger(__name__)

#: Of every endpoint that creates a run, for `@described`.
DELIVERED: Mapping[str, Any] = {
    "returns": {"application/json": AwaitedRun | CreatedRun, EVENT_STREAM: EventFrames},
    "status": 201,
    "headers": ["Prefer", "Idempotency-Key"],
}
#: How long, and how often, a cancel is tried while Postgres is unavailable.
CANCEL_SECONDS, CANCEL_PAUSE_SECONDS = 30.0, 1.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """The form of response that a request asks for."""

    streams: bool
    wait: int | None  # seconds
    cancels: bool  # when the client leaves before the end

    def respond(self, created: Response) -> Response:
        """Return the response for the run that `created`, perhaps a replay, names.

        Raises:
            RunNotFound: it is a replay, and the run was deleted since, or is another member's now.
        """
        if not self.streams and self.wait is None:
            return created
        body = json.loads(created.get_data())
        run_id = UUID(body["run_id"])
        is_replay = "Idempotency-Replayed" in created.headers
        if is_replay:
            _find(actor(), run_id)
        on_leave = _go_on
        # A run that has taken the message is another request's, whose client may still be there.
        if self.cancels and "steer" not in body and "is_merged" not in body.get("queue", {}):
            on_leave = partial(cancel_after_leave, connections(), actor(), run_id)
        if self.streams:
            # With either field it may be a run that was there before.
            is_old = is_replay or body.keys() & {"steer", "queue"}
            last_seq = None if is_old else 0
            response = streaming(watch_of(run_id, actor(), last_seq=last_seq), on_leave=on_leave)
        elif (shown := self._at_rest(run_id, on_leave)) is None:
            return created
        else:
            steering = {"steer": body["steer"]} if "steer" in body else {}
            response = jsonify({**shown, **steering})
            response.headers["Preference-Applied"] = f"wait={self.wait}"
        response.status_code = created.status_code
        for name in ("Location", "Idempotency-Replayed"):
            if name in created.headers:
                response.headers[name] = created.headers[name]
        return response

    def _at_rest(self, run_id: UUID, on_leave: Callable[[], None]) -> dict[str, Any] | None:
        """Show the run when it is at rest, or as it is when the time is over.

        No connection to the database is held meanwhile. None if the run can no longer be read: it
        exists, and the response must say so.
        """
        assert self.wait is not None
        try:
            run = _find(actor(), run_id)
            if status_of(run["state"]) == "running":
                last_seq = run["last_seq"]
                watch = watch_of(run_id, actor(), cursor=last_seq, last_seq=last_seq)
                wait_for_rest(hub(), watch, self.wait)
                if watch.has_left:
                    on_leave()
                run = _find(actor(), run_id)
            shown = shown_in_full(run)
        except (NotFound, Unavailable):
            return None
        return shown if authenticator().still_valid(actor()) else None


def requested_delivery(on_disconnect: str | None) -> Delivery:
    """Read what this request asks for; call this before the run is created.

    Raises:
        Forbidden: a response with more than the run's id requires `data.runs.read`.
        InvalidRequest: `cancel` without a response that takes time.
        StreamLimitExceeded: a stream is requested, and as many as may are open.
    """
    types = ["application/json", EVENT_STREAM]
    streams = request.accept_mimetypes.best_match(types) == EVENT_STREAM
    wait = None if streams else wait_seconds()
    if streams or wait is not None:
        actor().check_permits("data.runs.read")
    cancels = on_disconnect == "cancel"
    if cancels and not streams and wait is None:
        why = f"requires `Accept: {EVENT_STREAM}` or `Prefer: wait=N`"
        raise InvalidRequest(on_disconnect=[why])
    if streams:
        reserve_stream()
    return Delivery(streams, wait, cancels)


def _find(who: Actor, run_id: UUID) -> RowMapping:
    with connections().reading() as sql:
        return queries.get(sql, who, run_id)


def _go_on() -> None:
    """Leave the run alone."""


def cancel_after_leave(connections: Connections, who: Actor, run_id: UUID) -> None:
    """Cancel the run of a client that has left; outside of any request."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while True:
        try:
            audited.cancel_after_leave(connections, who, run_id)
            return
        except NotFound:
            return
        except Unavailable:
            if time.monotonic() > deadline:
                extra = {"run_id": str(run_id), "org_id": str(who.org_id)}
                log.exception("run not cancelled after its client left: %s", run_id, extra=extra)
                return
            time.sleep(CANCEL_PAUSE_SECONDS)
