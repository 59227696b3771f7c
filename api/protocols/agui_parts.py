"""The parts of a run that AG-UI shows as runs of its own: one up to each wait for its client."""

import json
from collections.abc import Callable
from uuid import UUID

from sqlalchemy import Connection

from arkloop.api.http.current import actor
from arkloop.api.protocols.agui_facts import AguiFacts
from arkloop.api.protocols.agui_projection import AguiProjection
from arkloop.shared.events import event_log
from arkloop.shared.runs import pending_calls, queries
from arkloop.shared.runs.states import RunState

_PAGE_EVENTS = 2_000


def last_part(
    sql: Connection, facts: AguiFacts, is_wanted: Callable[[AguiProjection], bool] = lambda _: False
) -> AguiProjection:
    """Return the projection of the last part, or of the first that asks for what is wanted."""
    waits = 0
    while True:
        projection = AguiProjection(facts, waits)
        projection.opening()
        last = _fold(sql, projection, facts.run_id)
        if projection.asked is None or is_wanted(projection):
            return projection
        if last == event_log.last_seq(sql, facts.run_id):
            return projection
        waits = projection.waits


def waits_before_shown(sql: Connection, facts: AguiFacts) -> int:
    """Return the number of waits before the part of a run that a joining client is shown.

    It is the last part. If that ends with a request which has been replied to, or which only lacks
    results of HTTP tools, the client is shown what follows it.
    """
    projection = last_part(sql, facts)
    if projection.asked is None:
        return projection.first
    # Read after its events, which are stored together with it: the run may have asked meanwhile.
    run = queries.get(sql, actor(), facts.run_id)
    pending = (run["pending_input"] if run["state"] == RunState.WAITING else None) or {}
    is_open = pending.get("request_id") == request_id_of(projection)
    if pending.get("kind") == pending_calls.KIND:
        is_open &= any(call["name"] in facts.client_tools for call in pending["calls"])
    return projection.first if is_open else projection.waits


def request_id_of(projection: AguiProjection) -> str:
    """Return the id of the request with which a part ends, an empty text without one."""
    return "" if projection.asked is None else str(projection.asked["data"]["request_id"])


def _fold(sql: Connection, projection: AguiProjection, run_id: UUID) -> int:
    seq = 0
    while not projection.is_over:
        page = event_log.read_table(sql, run_id, seq, _PAGE_EVENTS)
        for event in page:
            projection.frames(json.loads(event.payload))
            seq = event.seq
            if projection.is_over:
                break
        if len(page) < _PAGE_EVENTS:
            break
    return seq
