"""The parts of a run that AG-UI shows as runs of its own: one up to each wait for its client."""

from collections.abc import Callable

from sqlalchemy import Connection

from arkloop.api.http.current import actor
from arkloop.api.protocols.agui_facts import AguiFacts
from arkloop.api.protocols.agui_projection import AguiProjection
from arkloop.api.protocols.projection import fold
from arkloop.api.protocols.run_parts import Data, RunPart, find_part
from arkloop.shared.events import event_log
from arkloop.shared.runs import pending_calls, queries
from arkloop.shared.runs.states import RunState


def last_part(
    sql: Connection, facts: AguiFacts, is_wanted: Callable[[Data], bool] = lambda _: False
) -> RunPart:
    """Return the last part, or the first that ends with a request which is wanted."""
    waits, last_seq = event_log.waits(sql, facts.run_id)
    return find_part(waits, last_seq, facts.asks_client, lambda _, data: is_wanted(data))


def projection_of(sql: Connection, facts: AguiFacts, part: RunPart) -> AguiProjection:
    """Return the projection of a part, up to its end."""
    projection = AguiProjection(facts, part.first)
    projection.opening()
    fold(sql, projection, facts.run_id, skips_lost=True)
    return projection


def waits_before_shown(sql: Connection, facts: AguiFacts) -> int:
    """Return the number of waits before the part of a run that a joining client is shown.

    It is the last part. If that ends with a request which has been replied to, or which only lacks
    results of HTTP tools, the client is shown what follows it.
    """
    part = last_part(sql, facts)
    if not part.asked:
        return part.first
    # Read after its events, which are stored together with it: the run may have asked meanwhile.
    run = queries.get(sql, actor(), facts.run_id)
    pending = (run["pending_input"] if run["state"] == RunState.WAITING else None) or {}
    is_open = pending.get("request_id") == part.asked["request_id"]
    if pending.get("kind") == pending_calls.KIND:
        is_open &= any(call["name"] in facts.client_tools for call in pending["calls"])
    return part.first if is_open else part.waits
