"""Messages of AG-UI that are sent again, and the runs that are about to answer them."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, RowMapping

from arkloop.api.http.current import actor, catalog
from arkloop.api.protocols import sent_files
from arkloop.api.protocols.agui_requests import DEFAULT_ROUTE, MESSAGE_ID, AguiRequest
from arkloop.shared.catalog.personas import DEFAULT_PERSONA
from arkloop.shared.errors import PersonaNotFound, RouteNotFound
from arkloop.shared.runs import thread_entries
from arkloop.shared.threads.content import Content, described, own_content


def answering_run(
    sql: Connection,
    wanted: AguiRequest,
    thread_id: UUID,
    persona_id: str | None,
    route_id: str | None,
    *,
    but: UUID | None = None,
) -> UUID | None:
    """Return the agent's run that is about to answer the message, perhaps leaving one out."""
    message = wanted.new_message()
    message_id = None if message is None else message.metadata.get(MESSAGE_ID)
    if message is None or message_id is None:
        return None
    unended = thread_entries.unended_runs(sql, thread_id, MESSAGE_ID, message_id)
    parts = [message.content.parts or (), *(found.parts or () for found in unended)]
    digests = sent_files.digests_of(sql, parts) if unended else {}
    sent = compared(message.content, digests)
    for found in unended:
        is_same = compared(own_content(found), digests) == sent
        if is_same and found.id != but and _has_agent(sql, found, persona_id, route_id):
            run_id: UUID = found.id
            return run_id
    return None


def compared(content: Content, digests: Mapping[str, str]) -> str:
    """Return a text that contents have in common which are the same to a person.

    A file in base64 is stored anew with each request: it has its digest in place of its id.
    """
    if content.parts is None:
        return content.text
    return described(
        [
            {**part, "file_id": digests.get(part["file_id"], part["file_id"])}
            if "file_id" in part
            else part
            for part in content.parts
        ]
    )


def known_message(
    sql: Connection, wanted: AguiRequest, thread: Row[Any] | None, *, is_last: bool
) -> Row[Any] | None:
    """Return the last message of the thread that is the one with which the request ends.

    None if the request has another end, or if all messages with that id have other content; with
    `is_last`, if the last one has.
    """
    message = wanted.new_message()
    if thread is None or message is None:
        return None
    found = thread_entries.find_messages(sql, thread.id, MESSAGE_ID, wanted.messages[-1]["id"])
    found = found[:1] if is_last else found
    parts = [message.content.parts or (), *(one.parts or () for one in found)]
    digests = sent_files.digests_of(sql, parts) if found else {}
    sent = compared(message.content, digests)
    return next((one for one in found if compared(own_content(one), digests) == sent), None)


def is_of_earlier_run(sql: Connection, known: Row[Any] | None, run: RowMapping) -> bool:
    """Return whether the message was there before the run, and is not the one that this answers.

    The runs before it have ended.
    """
    if known is None or known.position > run["position"]:
        return False
    own = thread_entries.last_round(sql, run["thread_id"], before=run["position"], after=-1)
    return known.id not in {message.id for message in own}


def came_with_reply(
    sql: Connection, known: Row[Any] | None, run: RowMapping, asked: Mapping[str, Any] | None
) -> bool:
    """Return whether the message may have come together with the reply to what a run has asked.

    A reply to what was over already is not stored: such a message came after that. Where a question
    came without a call, the message before it is still the last one; another page may have sent one
    while the run was active.
    """
    if asked is None or known is None or known.position <= run["position"]:
        return False
    request = asked["data"]
    over_at = thread_entries.replied_at(sql, run["id"], UUID(request["request_id"]))
    if over_at is None:
        expires_at = datetime.fromisoformat(request["expires_at"])
        over_at = min(expires_at, run["ended_at"] or expires_at)
    return bool(known.created_at >= over_at)


def _has_agent(
    sql: Connection, run: Row[Any], persona_id: str | None, route_id: str | None
) -> bool:
    """Return whether a run has the persona and the route of a request, or those that it implies.

    A run of the version before the newest has the persona, too, and the route of its version. Where
    the request named no route, or the message did not come by AG-UI, a request without a route
    accepts any.
    """
    key, _, _ = run.persona_id.partition("@")
    if (persona_id or actor().persona_id or DEFAULT_PERSONA) not in (run.persona_id, key):
        return False
    if route_id is None and (DEFAULT_ROUTE in run.metadata or MESSAGE_ID not in run.metadata):
        return True
    if route_id is None:
        org_id = actor().org_id
        # What is gone from the catalog may be that of the run.
        with suppress(PersonaNotFound, RouteNotFound):
            persona = catalog().persona(org_id, run.persona_id, sql=sql)
            route_id = catalog().choose_route(org_id, None, persona, sql=sql).id
    return route_id in (None, run.route_id)
