"""The body of `POST /v1/agui`, a `RunAgentInput`; of its messages only what is new counts.

Clients send the whole conversation each time. The server has it already, and does not take it from
a client again: only the newest message of the user, or else the results of pending calls are read;
beside a reply both. What a client has otherwise is only used to decide what it is shown.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from ag_ui.core import ResumeEntry, RunAgentInput, Tool
from ag_ui.core.types import Context
from marshmallow import ValidationError
from pydantic import ValidationError as InvalidModel

from arkloop.api.http.content import MessageContent, reasons
from arkloop.api.protocols import call_ids, sent_files
from arkloop.api.protocols.agui_messages import Message
from arkloop.api.protocols.empty_texts import without_empty_texts
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.client_data import MAX_VALUE_LENGTH
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.runs import overrides
from arkloop.shared.runs.creation import NewMessage
from arkloop.shared.runs.overrides import Options
from arkloop.shared.threads.content import Content

#: Of ids that clients give.
MAX_ID_CHARACTERS = 128
MAX_MESSAGES = 5_000
MESSAGE_ID = "agui.message_id"
#: A key of the metadata of a message whose request names no route.
DEFAULT_ROUTE = "agui.default_route"
RUN_ID = "agui.run_id"
_MAX_PROBLEMS = 20
_CONTENT = MessageContent()


@dataclass(frozen=True, slots=True, kw_only=True)
class AguiRequest:
    """The parts of a request that count; `messages` are all that were sent, to be shown again."""

    thread_id: str
    run_id: str
    messages: list[Message]
    tools: tuple[Tool, ...]
    context: tuple[Context, ...]
    resume: tuple[ResumeEntry, ...]
    #: True for a client of 0.0.x, which names no version of the protocol.
    is_0_0: bool

    @property
    def key(self) -> str:
        """The name of the request: its `runId`, and the interrupts to which it replies.

        Clients may reply under the `runId` of the request that was interrupted.
        """
        if not self.resume:
            return f"agui {self.run_id}"
        interrupts = json.dumps([entry.interrupt_id for entry in self.resume])
        return f"agui {self.run_id} {hashlib.sha256(interrupts.encode()).hexdigest()}"

    def essence(self) -> Any:
        """Return what a request with the same `key` must have in common with this one."""
        resume = [entry.model_dump(mode="json") for entry in self.resume]
        return [self.thread_id, resume, self.results, self.messages[-1:]]

    @property
    def results(self) -> dict[str, str]:
        """The results after the last message of the agent, by the ids of their calls.

        There are none before a new message of the user, who has moved on, except beside `resume`:
        pages may show the text of a reply as a message. Clients keep results of runs that have
        ended, too.

        Raises:
            InvalidRequest: one has other content than text.
        """
        return {
            call_id: message.get("error") or _text(f"messages.{place}.content", message)
            for call_id, (place, message) in self._newest_results().items()
        }

    def _newest_results(self) -> dict[str, tuple[int, Message]]:
        """Return the messages of `results` with their places, one of each call.

        Beside a reply it is the first one. After that the last: where a person has edited the
        arguments, the page has executed the call again.
        """
        found: dict[str, tuple[int, Message]] = {}
        if self.messages and self.messages[-1]["role"] == "user" and not self.resume:
            return found
        for place in range(len(self.messages) - 1, -1, -1):
            message = self.messages[place]
            if message["role"] == "assistant":
                break
            if message["role"] == "tool" and (self.resume or message["toolCallId"] not in found):
                found[message["toolCallId"]] = place, message
        return found

    @property
    def open_calls(self) -> frozenset[str]:
        """The ids of the calls in the messages that have no result there."""
        calls = {call["id"] for m in self.messages for call in m.get("toolCalls") or ()}
        return frozenset(calls - {m.get("toolCallId") for m in self.messages})

    def given_results(self, run_id: UUID) -> dict[str, str]:
        """Return the results of the run's calls in the messages that are text, and no errors.

        They are the first ones of their calls.
        """
        of_run = call_ids.shown(run_id, "")
        sent = (m for m in reversed(self.messages) if m["role"] == "tool" and not m.get("error"))
        found = {m["toolCallId"]: text_of(m) for m in sent if m["toolCallId"].startswith(of_run)}
        return {call_id: text for call_id, text in found.items() if text is not None}

    def is_error(self, call_id: str) -> bool:
        """Return whether one of `results` reports that its call has failed."""
        _, message = self._newest_results()[call_id]
        return bool(message.get("error"))

    def with_stored_files(self) -> "AguiRequest":
        """Return the same with the files stored that its new message has as base64.

        Raises:
            InvalidRequest, Forbidden, BodyTooLarge, StorageUnavailable
        """
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "user" or not isinstance(last["content"], list):
            return self
        name = f"messages.{len(self.messages) - 1}.content"
        sent_files.check_count(name, without_empty_texts(last["content"]))
        parts = [_stored(f"{name}.{place}", part) for place, part in enumerate(last["content"])]
        return replace(self, messages=[*self.messages[:-1], {**last, "content": parts}])

    def new_message(self, *, by_default_route: bool = False) -> NewMessage | None:
        """Return the user's message with which the conversation ends, None if it ends otherwise.

        With `by_default_route` its metadata say that the request names no route.

        Raises:
            InvalidRequest: its content is not supported.
        """
        if not self.messages or self.messages[-1]["role"] != "user":
            return None
        place, message = len(self.messages) - 1, self.messages[-1]
        fits = len(message["id"]) <= MAX_VALUE_LENGTH
        by_default = {DEFAULT_ROUTE: "true"} if by_default_route else {}
        return NewMessage(
            content=_content(f"messages.{place}.content", message["content"]),
            metadata={MESSAGE_ID: message["id"], **by_default} if fits else {},
        )

    def options(self, persona: Persona, route: Route) -> Options | None:
        """Return what the request adds to the persona: its tools, and the context of the page.

        Pages name a tool that the persona declares, too, so that they can execute its calls.

        Raises:
            InvalidRequest: see `overrides.check`; with the names of members, not of overrides.
        """
        given: dict[str, Any] = {}
        declared = {tool.name for tool in persona.client_tools}
        if tools := [_tool(tool) for tool in self.tools if tool.name not in declared]:
            given["tools"] = tools
        if self.context:
            given["instructions"] = "\n".join(f"{c.description}: {c.value}" for c in self.context)
        try:
            return overrides.check(persona, route, given)
        except InvalidRequest as error:
            members = {"instructions": "context"}
            problems = {members.get(name, name): why for name, why in error.details.items()}
            raise InvalidRequest(**problems) from None


def read(body: Mapping[str, Any] | None) -> AguiRequest:
    """Read a `RunAgentInput`; members that it does not have are ignored, as the protocol says.

    Raises:
        InvalidRequest
    """
    if body is None:
        raise InvalidRequest(body=["is required: send a RunAgentInput"])
    try:
        wanted = RunAgentInput.model_validate(body)
    except InvalidModel as error:
        problems: dict[str, list[str]] = {}
        for problem in error.errors(include_url=False)[:_MAX_PROBLEMS]:
            name = ".".join(str(part) for part in problem["loc"]) or "body"
            problems.setdefault(name, []).append(problem["msg"])
        raise InvalidRequest(**problems) from None
    for name, text in (("threadId", wanted.thread_id), ("runId", wanted.run_id)):
        if not 1 <= len(text) <= MAX_ID_CHARACTERS or not text.isprintable():
            why = f"must be 1 to {MAX_ID_CHARACTERS} printable characters"
            raise InvalidRequest(**{name: [why]})
    if len(wanted.messages) > MAX_MESSAGES:
        raise InvalidRequest(messages=[f"must have at most {MAX_MESSAGES} items"])
    for number, tool in enumerate(wanted.tools or ()):
        if not isinstance(tool.parameters, dict | None):
            raise InvalidRequest(**{f"tools.{number}.parameters": ["must be a JSON Schema"]})
    # As the models write them: they accept other spellings of the names, too.
    sent = (message.model_dump(mode="json", by_alias=True) for message in wanted.messages)
    return AguiRequest(
        thread_id=wanted.thread_id,
        run_id=wanted.run_id,
        messages=[message for message in sent if message["role"] != "activity"],
        tools=tuple(wanted.tools or ()),
        context=tuple(wanted.context or ()),
        resume=tuple(wanted.resume or ()),
        is_0_0=wanted.protocol_version is None,
    )


def _tool(tool: Tool) -> dict[str, Any]:
    schema = {"type": "object", **(tool.parameters or {})}
    description = tool.description or tool.name
    return {"name": tool.name, "description": description, "parameters": schema, "client": True}


def _text(name: str, message: Message) -> str:
    text = text_of(message)
    if text is None:
        raise InvalidRequest(**{name: ["must be text: other results are not supported"]})
    return text


def text_of(message: Message) -> str | None:
    """Return the content of a message as text, None if it has anything else."""
    content = message["content"]
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content):
        return None
    return "\n".join(part["text"] for part in content)


def _content(name: str, content: Any) -> Content:
    parts = content
    if isinstance(content, list):
        said = without_empty_texts(content)
        parts = [_part(f"{name}.{place}", part) for place, part in said]
    try:
        read: Content = _CONTENT.deserialize(parts)
        return read
    except ValidationError as error:
        raise InvalidRequest(**{name: reasons(error)}) from None


def _stored(name: str, part: Any) -> Any:
    match part:
        case {"type": "image" | "document", "source": {"type": "data", "value": str(data)}}:
            about = part.get("metadata")
            file_name = about.get("filename") if isinstance(about, dict) else None
            file_id = sent_files.stored(name, data, file_name, is_image=part["type"] == "image")
            return {"type": part["type"], "source": {"type": "file", "value": str(file_id)}}
    return part


def _part(name: str, part: Any) -> Mapping[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image" | "document", "source": {"type": "url", "value": str(url)}}:
            if (file_id := sent_files.file_at(url)) is not None:  # as clients of 0.0.x have it
                return {"type": _KINDS[part["type"]], "file_id": file_id}
            return {"type": _KINDS[part["type"]], "url": url}
        case {"type": "image" | "document", "source": {"type": "file", "value": str(file_id)}}:
            return {"type": _KINDS[part["type"]], "file_id": file_id}
    why = "must be text, or an image or document by URL, by file or in base64"
    raise InvalidRequest(**{name: [why]})


_KINDS = {"image": "image", "document": "file"}
