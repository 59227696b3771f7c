"""The runs behind responses: what is known of them, and the responses of these."""

from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping

from arkloop.api.http.current import actor
from arkloop.api.protocols import responses_ids
from arkloop.api.protocols.client_tool_names import client_tool_names
from arkloop.api.protocols.projection import fold
from arkloop.api.protocols.responses_ids import ItemId, ResponseId
from arkloop.api.protocols.responses_object import RunFacts
from arkloop.api.protocols.responses_projection import ResponseProjection
from arkloop.api.protocols.run_parts import Data, find_part
from arkloop.shared.errors import ResponseNotFound, RunNotFound
from arkloop.shared.events import event_log
from arkloop.shared.runs import creation, offered_messages, overrides, queries, thread_order
from arkloop.shared.threads import threads
from arkloop.shared.threads.content import Content, own_content

#: The newest messages of a thread among which those that a client sends again are looked for.
_MAX_TURNS = 100


def find(sql: Connection, run_id: UUID) -> tuple[RowMapping, RunFacts]:
    """Return the run of a response. Raises: ResponseNotFound: there is none that the actor sees."""
    try:
        run = queries.get(sql, actor(), run_id)
    except RunNotFound:
        raise ResponseNotFound() from None
    before = thread_order.before(sql, run)
    given = overrides.given(run["options"]) or {}
    if actor().end_user_id is not None:  # the org's instructions are none of theirs
        given = {name: given[name] for name in given if name in creation.END_USER_OVERRIDES}
    return run, RunFacts(
        run_id=run["id"],
        created_at=int(run["created_at"].timestamp()),
        model=run["model"],
        options=given,
        client_tools=client_tool_names(run, sql),
        metadata=run["metadata"],
        end_user_id=run["end_user_id"],
        previous_response_id=None if before is None else str(_last_response(sql, *before)),
    )


def _last_response(sql: Connection, run_id: UUID, waits: int, may_have_http: bool) -> ResponseId:
    """Return the id of a run's last response: none begins behind a wait for HTTP tools alone."""
    if may_have_http:
        with suppress(RunNotFound):
            run = queries.get(sql, actor(), run_id)
            names = client_tool_names(run, sql)
            facts = RunFacts(run_id=run_id, created_at=0, model=run["model"], client_tools=names)
            return newest_response(sql, facts)
    return ResponseId(run_id, waits)


def said_after(sql: Connection, run: RowMapping, seq: int | None) -> list[Content]:
    """Return the messages of the user behind this event of the run, or behind the run if it is
    None, in their order, of the thread's newest.

    Those that the run was steered with have their events; its end puts them in front of it.

    Raises:
        ThreadNotFound
    """
    newest = threads.list_messages(sql, actor(), run["thread_id"], limit=_MAX_TURNS, before=None)
    said = [row for row in reversed(newest) if row.role == "user"]
    steered = {row.id for row in said if row.steered_into == run["id"]}
    behind = {row.id for row in said if row.position > run["position"]} - steered
    if steered and seq is not None:
        behind |= steered & offered_messages.delivered(sql, run["id"], after=seq)
    return [own_content(row) for row in said if row.id in behind]


def asked_for(sql: Connection, facts: RunFacts, call_ids: Set[str], seq: int) -> ResponseProjection:
    """Return the response that asked for results of these calls, or that has this event if there
    are none; else the run's newest, whose id alone `newest_response` finds.
    """
    waits, last_seq = event_log.waits(sql, facts.run_id)
    # Clients have calls by the events that made them; the requests, by the run's own ids.
    items = filter(None, map(responses_ids.parse_item, call_ids))
    seqs = {one.seq for one in items if one.run_id == facts.run_id and one.seq < last_seq}
    made = event_log.call_ids(sql, facts.run_id, seqs) if seqs else {}
    shown = {responses_ids.call_id(ItemId(facts.run_id, at)): id_ for at, id_ in made.items()}
    own_ids = {shown.get(id_, id_) for id_ in call_ids}
    projection = ResponseProjection(facts)

    def is_meant(asked_at: int, data: Data) -> bool:
        if not call_ids:
            return seq <= asked_at
        asked = {call["tool_call_id"] for call in projection.client_calls(data)}
        return own_ids <= asked

    part = find_part(waits, last_seq, projection.asks_client, is_meant)
    projection = ResponseProjection(facts, part.first)
    fold(sql, projection, facts.run_id, skips_lost=True)
    return projection


def newest_response(sql: Connection, facts: RunFacts) -> ResponseId:
    """Return the id of the run's newest response, as `asked_for` does."""
    waits, last_seq = event_log.waits(sql, facts.run_id)
    part = find_part(waits, last_seq, ResponseProjection(facts).asks_client)
    return ResponseId(facts.run_id, part.first)


class _Opening:
    """The part of a run before one of its responses, for `fold`, with the frames that open it."""

    def __init__(self, response: ResponseProjection) -> None:
        self.opening = response.opening()
        self.is_over = response.has_begun
        self._response = response

    def frames(self, event: Mapping[str, Any]) -> Iterable[bytes]:
        self.opening += self._response.frames(event)
        self.is_over = self._response.has_begun
        return ()

    def closing(self) -> Iterable[bytes]:
        return ()


def begin(sql: Connection, response: ResponseProjection, run_id: UUID) -> tuple[list[bytes], int]:
    """Apply the events before a response; returns its first frames and the number of the last one.

    It is whole without those that are lost.
    """
    before = _Opening(response)
    last = fold(sql, before, run_id, skips_lost=True)
    return before.opening, last


def past_failure(
    sql: Connection, facts: RunFacts, asking: ResponseProjection
) -> ResponseProjection:
    """Return the response after this one if it has ended without a whole answer, else this one.

    A client that sends all items again may have none of that response, or leave them out.
    """
    answered = ResponseProjection(facts, asking.waits)
    fold(sql, answered, facts.run_id, skips_lost=True)
    response = answered.response()
    is_whole = response["status"] == "completed" and response["output"]
    return answered if answered.is_over and not is_whole else asking
