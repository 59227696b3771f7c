"""A thread as AG-UI shows it: the messages of its runs, and the run that is active."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row, RowMapping

from arkloop.api.http.current import actor
from arkloop.api.protocols import agui_runs
from arkloop.api.protocols.agui_messages import Message
from arkloop.api.protocols.agui_projection import AguiFacts
from arkloop.api.protocols.agui_requests import MAX_MESSAGES, MESSAGE_ID
from arkloop.api.protocols.projection import arguments_text
from arkloop.shared.runs import queries, timeline
from arkloop.shared.runs.states import WAITING_FOR_THREAD
from arkloop.shared.runs.timeline import Entry, Place
from arkloop.shared.threads import earlier_lines, threads
from arkloop.shared.threads.content import Part

#: Messages and runs that a client is shown when it connects, and the pages that are read for it, of
#: about 1 MiB each: it sends all messages with each request, which may have 8 MiB.
MAX_ENTRIES = 200
MAX_PAGES = 4
#: Messages from which on no further page is shown; the rest of what a request may have is for the
#: active run and new ones.
MAX_SHOWN = MAX_MESSAGES * 4 // 5


class ActiveRun(NamedTuple):
    """The active run of a thread; its part that a client is shown follows `waits` waits."""

    facts: AguiFacts
    waits: int


class ShownThread(NamedTuple):
    """The messages of a thread, without those of its active run; `last` is its last run if none is.

    `last` is None where the thread has no run yet, or none any more.
    """

    messages: list[Any]
    active: ActiveRun | None = None
    last: Row[Any] | None = None


def read(sql: Connection, external_id: str) -> ShownThread:
    """Read the thread with this id of the client; it is empty if there is none."""
    thread = threads.find(sql, actor(), external_id)
    if thread is None:
        return ShownThread([])
    run_id: UUID | None = thread.active_run_id
    if run_id is None:
        entries = _entries(sql, thread.id)
        return ShownThread(_messages(entries), last=_last_run(entries))
    run = queries.get(sql, actor(), run_id)
    facts = agui_runs.facts_of(run, external_id)
    active = ActiveRun(facts, agui_runs.waits_before_shown(sql, facts))
    return ShownThread(_messages(_entries(sql, thread.id, without=run_id)), active)


def messages_before(sql: Connection, thread_id: UUID, run: RowMapping) -> list[Message]:
    """Return the messages of a thread without those of this run."""
    return _messages(_entries(sql, thread_id, without=run["id"]))


def _entries(sql: Connection, thread_id: UUID, *, without: UUID | None = None) -> list[Entry]:
    """Return the latest entries of a thread that are shown, the newest first, without this run.

    A run of more than a page has an entry of each.
    """
    shown: list[Entry] = []
    left, before = MAX_ENTRIES, None
    for _ in range(MAX_PAGES):
        found = timeline.read(sql, actor(), thread_id, limit=left, before=before)
        page = [entry for entry in found.entries if _is_shown(entry, without)]
        if shown and len(_messages(shown)) + len(_messages(page)) > MAX_SHOWN:
            break
        shown += page
        left, before = left - len(found.entries), found.end
        if before is None or left < 1:
            break
        if before.turn and not _is_shown(found.entries[-1], without):
            before = Place(before.position)
    return shown


def _is_shown(entry: Entry, without: UUID | None) -> bool:
    is_run = entry.turns is not None
    return not is_run or (entry.row.id != without and entry.row.superseded_at is None)


def _last_run(entries: Sequence[Entry]) -> Row[Any] | None:
    """Return the last run that does not wait for its thread, None if there is none."""
    for entry in entries:
        if entry.turns is not None and entry.row.state not in WAITING_FOR_THREAD:
            return entry.row
    return None


def _messages(entries: Sequence[Entry]) -> list[Message]:
    shown: list[Message] = []
    for entry in reversed(entries):
        if entry.turns is None:
            shown.append(_user_message(entry.row))
        else:
            shown += _run_messages(entry)
    return shown


def _user_message(row: Row[Any]) -> Message:
    id_ = row.metadata.get(MESSAGE_ID) or str(row.id)
    content: str | list[dict[str, Any]]
    if row.parts is not None and row.role == "user":
        content = [_part(part) for part in earlier_lines.own_parts(row.parts, row.metadata)]
    else:
        content = earlier_lines.own_text(row.content, row.metadata)
    return {"id": id_, "role": row.role, "content": content}


def _part(part: Part) -> dict[str, Any]:
    """Return a part as a request may have it, so that the client shows and sends it as it is."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    kind = "url" if "url" in part else "file"
    file = part.get("file") or {}
    source = {"type": kind, "value": part["url"] if kind == "url" else part["file_id"]}
    if "media_type" in file:
        source["mimeType"] = file["media_type"]
    shown = {"type": "image" if part["type"] == "image" else "document", "source": source}
    return {**shown, "metadata": {"filename": file["name"]}} if "name" in file else shown


def _run_messages(entry: Entry) -> Iterator[Message]:
    """Yield the messages that the stream of a run has had, under the same ids."""
    assert entry.turns is not None
    run_id: UUID = entry.row.id
    valid = [turn for turn in entry.turns.shown() if "output_errors" not in turn]
    for number, turn in enumerate(valid, entry.turns.first):
        if turn["reasoning"]:
            id_ = f"rs_{run_id.hex}_{number}_0"
            yield {"id": id_, "role": "reasoning", "content": turn["reasoning"]}
        calls = [_call(run_id, call) for call in turn["tool_calls"] if "arguments" in call]
        message: Message = {"id": f"msg_{run_id.hex}_{number}", "role": "assistant"}
        if turn["text"]:
            message["content"] = turn["text"]
        if calls:
            message["toolCalls"] = calls
        if turn["text"] or calls:
            yield message
        for call in turn["tool_calls"]:
            if call.get("result") is not None:
                id_ = f"{run_id.hex}.{call['tool_call_id']}"
                content = call["result"]["output"]
                shown = {"id": f"{id_}.result", "role": "tool", "toolCallId": id_}
                yield {**shown, "content": content}


def _call(run_id: UUID, call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": arguments_text(call["arguments"])}
    return {"id": f"{run_id.hex}.{call['tool_call_id']}", "type": "function", "function": function}
