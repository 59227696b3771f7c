"""A thread as AG-UI shows it: the messages of its runs, and the run that is active."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row, RowMapping

from arkloop.api.http.current import actor
from arkloop.api.protocols import agui_facts, agui_parts, sent_files
from arkloop.api.protocols.agui_answering import compared
from arkloop.api.protocols.agui_facts import AguiFacts
from arkloop.api.protocols.agui_messages import Message
from arkloop.api.protocols.agui_requests import DEFAULT_ROUTE, MAX_MESSAGES, MESSAGE_ID
from arkloop.api.protocols.projection import arguments_text
from arkloop.shared.agents import call_approvals
from arkloop.shared.runs import queries, timeline
from arkloop.shared.runs.states import WAITING_FOR_THREAD, RunState
from arkloop.shared.runs.timeline import Entry, Place
from arkloop.shared.threads import earlier_lines, threads
from arkloop.shared.threads.content import Part, own_content

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
        entries, digests = _entries(sql, thread.id)
        return ShownThread(_messages(entries, digests), last=_last_run(entries))
    run = queries.get(sql, actor(), run_id)
    facts = agui_facts.facts_of(run, external_id)
    active = ActiveRun(facts, agui_parts.waits_before_shown(sql, facts))
    return ShownThread(messages_before(sql, thread.id, run), active)


def messages_before(sql: Connection, thread_id: UUID, run: RowMapping) -> list[Message]:
    """Return the messages of a thread without those of this run."""
    return _messages(*_entries(sql, thread_id, without=run["id"]), run["id"])


def _entries(
    sql: Connection, thread_id: UUID, *, without: UUID | None = None
) -> tuple[list[Entry], dict[str, str]]:
    """Return the latest entries of a thread, the newest first, without superseded ones.

    The second value is the digests of their files, by the files' ids.

    A run of more than a page has an entry of each, except the run that is not shown.
    """
    shown: list[Entry] = []
    digests: dict[str, str] = {}
    left, before = MAX_ENTRIES, None
    for _ in range(MAX_PAGES):
        found = timeline.read(sql, actor(), thread_id, limit=left, before=before)
        page = [entry for entry in found.entries if _is_there(entry)]
        parts = (entry.row.parts or () for entry in page if entry.turns is None)
        digests |= sent_files.digests_of(sql, parts)
        count = len(_messages(shown, digests, without))
        if count and count + len(_messages(page, digests, without)) > MAX_SHOWN:
            break
        shown += page
        left, before = left - len(found.entries), found.end
        if before is None or left < 1:
            break
        last = found.entries[-1]
        if before.turn and not (_is_there(last) and last.row.id != without):
            before = Place(before.position)
    return shown, digests


def _is_there(entry: Entry) -> bool:
    return entry.turns is None or entry.row.superseded_at is None


def _last_run(entries: Sequence[Entry]) -> Row[Any] | None:
    """Return the last run that does not wait for its thread, None if there is none."""
    for entry in entries:
        if entry.turns is not None and entry.row.state not in WAITING_FOR_THREAD:
            return entry.row
    return None


class _Sent(NamedTuple):
    """A message to an agent: a persona, and the route that the request has named, if any."""

    message_id: str
    content: str  # as messages are compared
    persona_key: str
    route_id: str


@dataclass(slots=True)
class _Round:
    """A user's message, and the entries up to the next one, which are the runs that answer it.

    The first round of a part of a thread may lack its message.
    """

    said: Row[Any] | None
    message_id: str = ""
    content: str = ""
    answers: list[Entry] = field(default_factory=list)

    def sent(self) -> dict[_Sent, list[Entry]]:
        """Return the runs of each agent to which the message was sent.

        One that did not come by AG-UI counts as sent with the route of its run, and also as sent
        without any if all runs of the persona have the same.
        """
        found: dict[_Sent, list[Entry]] = {}
        if self.said is None:
            return found
        metadata = self.said.metadata
        for entry in self.answers:
            if entry.turns is not None:
                persona_key, _, _ = entry.row.persona_id.partition("@")
                route_id = "" if DEFAULT_ROUTE in metadata else entry.row.route_id
                sent = _Sent(self.message_id, self.content, persona_key, route_id)
                found.setdefault(sent, []).append(entry)
        if MESSAGE_ID not in metadata:
            routes = Counter(sent.persona_key for sent in found)
            for sent in list(found):
                if routes[sent.persona_key] == 1:
                    found[sent._replace(route_id="")] = found[sent]
        return found


def _has_answer(answers: Sequence[Entry]) -> bool:
    """Return whether one of these runs has anything to show, or has not ended."""
    return any(
        not RunState(entry.row.state).is_terminal or any(_run_messages(entry)) for entry in answers
    )


def _messages(
    entries: Sequence[Entry], digests: Mapping[str, str], without: UUID | None = None
) -> list[Message]:
    """Return the messages of these entries, the newest of which comes first, without this run's.

    Each id is there once: where a message was sent to several agents, behind its first copy.
    Another message under the id of an earlier one is shown under the id that it has here.
    """
    shown: list[Message] = []
    ids: set[str] = set()
    contents: set[tuple[str, str]] = set()  # with the ids of messages
    for one in _last_answers(entries, digests):
        if one.said is not None:
            message = _user_message(one.said)
            content = one.message_id, one.content
            if content not in contents:
                contents.add(content)
                if message["id"] in ids:
                    message["id"] = str(one.said.id)
                ids.add(message["id"])
                shown.append(message)
        for entry in one.answers:
            if entry.turns is None:
                shown.append(_user_message(entry.row))
            elif entry.row.id != without:
                shown += _run_messages(entry)
    return shown


def _last_answers(entries: Sequence[Entry], digests: Mapping[str, str]) -> Sequence[_Round]:
    """Return the rounds of these entries, the oldest first.

    Runs are left out whose message was sent again to the same agent, for another answer: under its
    id, with its content; and rounds that have no others. Where no other answer came, the earlier
    one stays.
    """
    rounds = [_Round(None)]
    ids: dict[str, str] = {}  # of messages, by those of their rows, under which they may be shown
    for entry in reversed(entries):
        row = entry.row
        if entry.turns is None and row.role == "user":
            id_ = _message_id(row)
            ids[str(row.id)] = id_ = ids.get(id_, id_)
            content = compared(own_content(row), digests)
            rounds.append(_Round(row, id_, content))
        else:
            rounds[-1].answers.append(entry)
    answers = [one.sent() for one in rounds]
    last: dict[_Sent, list[Entry]] = {}
    for sent, runs in (item for of_round in answers for item in of_round.items()):
        if sent not in last or _has_answer(runs) or not _has_answer(last[sent]):
            last[sent] = runs
    shown = []
    for one, of_round in zip(rounds, answers, strict=True):
        replaced = {
            entry.row.id
            for sent, runs in of_round.items()
            if last[sent] is not runs
            for entry in runs
        }
        one.answers = [entry for entry in one.answers if entry.row.id not in replaced]
        if one.answers or not replaced:
            shown.append(one)
    return shown


def _message_id(row: Row[Any]) -> str:
    return row.metadata.get(MESSAGE_ID) or str(row.id)


def _user_message(row: Row[Any]) -> Message:
    content: str | list[dict[str, Any]]
    if row.parts is not None and row.role == "user":
        content = [_part(part) for part in earlier_lines.own_parts(row.parts, row.metadata)]
    else:
        content = earlier_lines.own_text(row.content, row.metadata)
    return {"id": _message_id(row), "role": row.role, "content": content}


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
    """Yield the messages that the stream of a run has had, under the same ids.

    Reasoning between pieces of a turn's text has a message of its own in the stream. Here all of
    the turn is in the first one: turns are folded without the places of their text.
    """
    assert entry.turns is not None
    run_id: UUID = entry.row.id
    valid = [turn for turn in entry.turns.shown() if "output_errors" not in turn]
    for number, turn in enumerate(valid, entry.turns.first):
        if turn["reasoning"]:
            id_ = f"rs_{run_id.hex}_{number}_0"
            yield {"id": id_, "role": "reasoning", "content": turn["reasoning"]}
        edited = _edited(turn)
        calls = [
            _call(run_id, {**call, **edited.get(call["tool_call_id"], {})})
            for call in turn["tool_calls"]
            if "arguments" in call
        ]
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


def _edited(turn: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the `arguments` that people have given calls in place of their own, by `tool_call_id`.

    The last request for each call counts, also without a reply: the run makes one where arguments
    do not fit.
    """
    replies = {
        question["tool_call_id"]: call_approvals.edited(question["answer"] or "")
        for question in turn["questions"]
        if question["kind"] == call_approvals.KIND
    }
    return {id_: {"arguments": given} for id_, given in replies.items() if given is not None}


def _call(run_id: UUID, call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": arguments_text(call["arguments"])}
    return {"id": f"{run_id.hex}.{call['tool_call_id']}", "type": "function", "function": function}
