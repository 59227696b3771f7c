"""Requests that continue a response and are sent again, or whose answer their client lacks.

Such a request has created the next run of its conversation. By that run and its message it is
known: nothing else is stored for it, and a request that is not sent again costs nothing more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, RowMapping

from arkloop.api.http.current import actor
from arkloop.api.http.json_body import read_json
from arkloop.api.protocols import responses_files
from arkloop.api.protocols.responses_defaults import without_defaults
from arkloop.api.protocols.responses_input import Input
from arkloop.shared.events import event_log
from arkloop.shared.events.types import RunStarted
from arkloop.shared.runs import thread_entries, thread_order
from arkloop.shared.runs.new_runs import NewRun
from arkloop.shared.runs.overrides import Options
from arkloop.shared.threads import earlier_lines, threads
from arkloop.shared.threads.content import Content, own_content

#: The beginning of a transcript in instructions, as earlier commits have put it there.
_TRANSCRIPT = "The conversation before the user's message:"


@dataclass(frozen=True, slots=True)
class Request:
    """A request for the next run behind `run`, which has `given` as its input.

    With `skips_failed` it is another attempt behind runs that failed or were cancelled.
    """

    new: NewRun
    given: Input
    run: RowMapping
    skips_failed: bool


@dataclass(frozen=True, slots=True)
class Followed:
    """The runs behind the one that a request continues, as far as it can have known them.

    `same` is the one that the same request of the same sender has created. Without it, `last` is
    the last run whose message the request shows, as it does those of all before it.
    """

    same: UUID | None = None
    last: UUID | None = None


def look(sql: Connection, request: Request, *, but: UUID | None = None) -> Followed:
    """Look at the runs behind the continued one, perhaps leaving one out, in their order.

    None is looked at behind one that the request does not show: it continues that one, and so
    comes from another request. A newer version of its persona makes no difference, since the
    request may name none, nor does the route where it names a persona: another one may be the
    default by now.
    """
    new, run, who = request.new, request.run, actor()
    stored = _as_stored(request)
    thread = threads.get(sql, who, run["thread_id"])
    end_user_id = who.end_user_id or new.end_user_id or thread.end_user_id
    body: Any = read_json()  # files in it are replaced by now
    names_persona = _key(body["model"]) == _key(new.persona.id)
    sent, place, last = responses_files.before_last(body["input"]), -1, None
    for later in thread_order.following(sql, run, skips_failed=request.skips_failed):
        if later["id"] == but:
            continue
        if not (messages := _messages_of(sql, run, later)):
            break
        sender = (later["created_by_user_id"], later["api_key_id"], later["end_user_id"])
        is_same = (
            sender == (who.user_id, who.api_key_id, end_user_id)
            and _key(later["persona_id"]) == _key(new.persona.id)
            and (names_persona or later["route_id"] == new.route.id)
            and any(_stored(new, later, message) in stored for message in messages)
            and _began_with(sql, later, new.metadata)
        )
        if is_same:
            return Followed(same=later["id"])
        shown = (responses_files.place_of(sql, sent, message, after=place) for message in messages)
        places = [shown_at for shown_at in shown if shown_at is not None]
        if not places:
            break
        place, last = max(places), later["id"]
    return Followed(last=last)


def _messages_of(sql: Connection, run: RowMapping, later: RowMapping) -> Sequence[Row[Any]]:
    """Return the messages of the user that a run behind this one has, but for those that it was
    steered with: others may have joined the one of its request.
    """
    after = run["position"] if thread_order.has_place(run) else -1
    return thread_entries.last_round(sql, later["thread_id"], before=later["position"], after=after)


def _began_with(sql: Connection, run: RowMapping, metadata: Mapping[str, str]) -> bool:
    """Return whether a run may have been created with this metadata: others add to it, at any time,
    and change it. What it began with is kept.
    """
    if metadata == run["metadata"]:
        return True
    for event in event_log.read_table(sql, run["id"], 0, 1):
        if event.type == RunStarted.type:
            return bool(metadata == event_log.data_of(event.payload)["metadata"])
    return bool(metadata.items() <= run["metadata"].items())


#: The overrides of a run without the API's defaults, its message without a transcript, and the
#: digest of all lines of that. Whether the run has the defaults depends on its persona's version,
#: and the message lacks the lines that the thread had when it was created.
_Stored = tuple[Options, Content, str | None]


def _as_stored(request: Request) -> list[_Stored]:
    """Return what the run of the same request may have.

    Earlier commits, which may still run while this one is deployed, have put the transcript into
    the instructions.
    """
    new, given = request.new, request.given
    if given.message is None:
        return []
    options = without_defaults(new.options or {}, new.persona, new.route)
    stored: list[_Stored] = [(options, given.message, earlier_lines.digest(given.earlier))]
    if given.earlier:
        own = [options["instructions"]] if "instructions" in options else []
        whole = "\n\n".join([*own, _TRANSCRIPT, *given.earlier])
        stored.append(({**options, "instructions": whole}, given.message, None))
    return stored


def _stored(new: NewRun, run: RowMapping, message: Row[Any]) -> _Stored:
    content = own_content(message)
    options = without_defaults(run["options"] or {}, new.persona, new.route)
    return options, content, earlier_lines.digest_in(message.metadata)


def _key(persona_id: str) -> str:
    return persona_id.partition("@")[0]
