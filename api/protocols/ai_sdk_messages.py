"""UIMessages of a thread: what the AI SDK's client makes of the chunks, made here for a reload."""

import json
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import RowMapping

from arkloop.api.http.current import connections
from arkloop.api.protocols import sent_files
from arkloop.api.protocols.ai_sdk_chunks import Chunk
from arkloop.api.protocols.ai_sdk_dialects import NEWEST, Dialect
from arkloop.api.protocols.ai_sdk_projection import AiSdkProjection
from arkloop.api.protocols.projection import read_events
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.runs import pending_calls, thread_entries
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.pages import PAGE_BYTES
from arkloop.shared.threads import earlier_lines
from arkloop.shared.threads.content import Part

#: The metadata of a message that keeps the id which the client gave it.
CLIENT_ID = "ui_message_id"

UIMessage = dict[str, Any]


class Entry(NamedTuple):
    """A message at its position in the thread."""

    position: int
    message: UIMessage


def latest(
    thread_id: UUID, dialect: Dialect, *, limit: int, before: int | None
) -> tuple[list[Entry], int | None]:
    """Return the last messages before a position, the last one first.

    The second value is the position before which there are more, None if there are none. Runs that
    are being streamed are left out.
    """
    with connections().reading() as sql:
        found = thread_entries.list_(sql, thread_id, limit=limit + 1, before=before)
        rows = [row for row in found[:limit] if not _is_streamed(row)]
        run_ids = [row["run_id"] for row in rows if row["run_id"] is not None]
        early = pending_calls.early_ids(sql, run_ids) if run_ids else {}
    runs = groupby(read_events(*run_ids), key=itemgetter(0))
    shown: list[Entry] = []
    size = 0
    for row in rows:
        if row["run_id"] is None:
            message: UIMessage | None = _said(row)
        else:
            run_id, pages = next(runs)
            events = (event for _, page in pages for event in page)
            message = _answer(run_id, events, dialect, early.get(run_id, frozenset()))
        if message is None:
            continue
        shown.append(Entry(row["position"], message))
        size += len(json.dumps(message))
        if size > PAGE_BYTES:
            return shown, row["position"]
    return shown, found[limit - 1]["position"] if len(found) > limit else None


def _is_streamed(row: RowMapping) -> bool:
    if row["run_id"] is None:
        return False
    state = RunState(row["state"])
    return not state.is_terminal and state != RunState.WAITING


def _said(row: RowMapping) -> UIMessage:
    if row["role"] == "assistant":
        text = {"type": "text", "text": row["content"], "state": "done"}
        parts = [{"type": "step-start"}, text]
        return {"id": str(row["message_id"]), "role": "assistant", "metadata": {}, "parts": parts}
    return user_message(row["message_id"], row["content"], row["parts"], row["metadata"])


def _answer(
    run_id: UUID, events: Iterable[StoredEvent], dialect: Dialect, early_calls: frozenset[str]
) -> UIMessage | None:
    message = assistant_message(run_id, events, dialect, early_calls)
    if not message["parts"]:
        if "status" not in message["metadata"].get("arkloop", {}):
            return None  # its events are gone
        # It failed or was stopped before its first text, which the page shows by the metadata.
        # `validateUIMessages` of 6.0.0 and 7.0.0 refuses a message without a part.
        message["parts"].append({"type": "step-start"})
    return message


def user_message(
    message_id: UUID, content: str, parts: list[Part] | None, metadata: dict[str, str]
) -> UIMessage:
    """Return a user's own message, by the id that its client knows it by."""
    if parts is None:
        shown = [{"type": "text", "text": earlier_lines.own_text(content, metadata)}]
    else:
        shown = list(map(_part, earlier_lines.own_parts(parts, metadata)))
    return {"id": metadata.get(CLIENT_ID, str(message_id)), "role": "user", "parts": shown}


def assistant_message(
    run_id: UUID,
    events: Iterable[StoredEvent],
    dialect: Dialect = NEWEST,
    early_calls: frozenset[str] = frozenset(),
) -> UIMessage:
    """Return the message that a client has which followed these events of the run."""
    # Every wait is passed: the answers are in the events.
    projection = AiSdkProjection(run_id, dialect, until=None, early_calls=early_calls)
    message = UIMessageFold(str(run_id))
    for event in events:
        for chunk in projection.chunks(json.loads(event.payload)):
            message.add(chunk)
    return message.shown()


def _part(part: Part) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    file = part.get("file") or {}
    url = part["url"] if "url" in part else sent_files.url_of(part["file_id"])
    media_type = file.get("media_type") or ("image/*" if part["type"] == "image" else "*/*")
    shown = {"type": "file", "mediaType": media_type, "url": url}
    return {**shown, "filename": file["name"]} if "name" in file else shown


class UIMessageFold:
    """The fold of chunks into one UIMessage, for the chunks that `AiSdkProjection` makes.

    It follows `processUIMessageStream` of the package `ai`.
    """

    def __init__(self, message_id: str) -> None:
        self._id = message_id
        self._metadata: dict[str, Any] = {}
        self._parts: list[dict[str, Any]] = []
        self._open: dict[str, dict[str, Any]] = {}
        self._calls: dict[str, dict[str, Any]] = {}

    def shown(self) -> UIMessage:
        message = {"id": self._id, "role": "assistant", "metadata": self._metadata}
        return {**message, "parts": self._parts}

    def add(self, chunk: Chunk) -> None:
        match chunk["type"]:
            case "start" | "finish":
                about = chunk["messageMetadata"]["arkloop"]
                self._metadata = {"arkloop": {**self._metadata.get("arkloop", {}), **about}}
            case "start-step":
                self._parts.append({"type": "step-start"})
                self._calls.clear()
            case "reset-step":
                while self._parts[-1]["type"] != "step-start":
                    self._parts.pop()
                self._open.clear()
                self._calls.clear()
            case "text-start" | "reasoning-start":
                part = {"type": chunk["type"].removesuffix("-start"), "text": ""}
                if part["type"] == "reasoning":
                    part["id"] = chunk["id"]
                part["state"] = "streaming"
                self._parts.append(part)
                self._open[chunk["id"]] = part
            case "text-delta" | "reasoning-delta":
                self._open[chunk["id"]]["text"] += chunk["delta"]
            case "text-end" | "reasoning-end":
                self._open.pop(chunk["id"])["state"] = "done"
            case kind if kind.startswith("tool-"):
                self._add_to_call(chunk)
            case kind if kind.startswith("data-") and not chunk.get("transient"):
                self._add_data(chunk)

    def _add_data(self, chunk: Chunk) -> None:
        for part in self._parts:
            if "id" in chunk and (part["type"], part.get("id")) == (chunk["type"], chunk["id"]):
                part["data"] = chunk["data"]
                return
        self._parts.append(dict(chunk))

    def _add_to_call(self, chunk: Chunk) -> None:
        """Change the part of a call; nothing without one, where the event that made it is lost."""
        is_input = chunk["type"] in ("tool-input-start", "tool-input-available")
        call = self._call(chunk) if is_input else self._find(chunk)
        if call is None:
            return
        match chunk["type"]:
            case "tool-input-start":
                call.update(state="input-streaming", rawInput="")
            case "tool-input-delta":
                call["rawInput"] += chunk["inputTextDelta"]
            case "tool-input-available":
                call.pop("rawInput", None)
                call.update(state="input-available", input=chunk["input"])
            case "tool-approval-request":
                call.update(state="approval-requested", approval={"id": chunk["approvalId"]})
            case "tool-approval-response":
                call["state"] = "approval-responded"
                call["approval"].update(
                    {name: chunk[name] for name in ("approved", "reason") if name in chunk}
                )
            case "tool-output-available":
                call.update(state="output-available", output=chunk["output"])
                call["providerExecuted"] = chunk.get("providerExecuted", call["providerExecuted"])
            case "tool-output-error":
                call.setdefault("input", None)  # of incomplete arguments
                call.update(state="output-error", errorText=chunk["errorText"])
                call["providerExecuted"] = chunk.get("providerExecuted", call["providerExecuted"])
            case "tool-output-denied":
                call["state"] = "output-denied"

    def _call(self, chunk: Chunk) -> dict[str, Any]:
        """Return the part of a call in the current step, which is made if there is none."""
        call_id = chunk["toolCallId"]
        if call_id not in self._calls:
            self._calls[call_id] = {"toolCallId": call_id}
            self._parts.append(self._calls[call_id])
        call = self._calls[call_id]
        call["type"] = f"tool-{chunk['toolName']}"
        call["providerExecuted"] = chunk["providerExecuted"]
        return call

    def _find(self, chunk: Chunk) -> dict[str, Any] | None:
        """Return the last part of a chunk's call, in whatever step; None if there is none."""
        if "toolCallId" in chunk:
            own = (p for p in reversed(self._parts) if p.get("toolCallId") == chunk["toolCallId"])
        else:
            asked = chunk["approvalId"]
            own = (p for p in self._parts if p.get("approval", {}).get("id") == asked)
        return next(own, None)
