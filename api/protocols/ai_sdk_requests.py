"""The body that the AI SDK's transports send, and what of it counts.

It has the whole conversation as the page knows it. Only the newest user message is taken from it,
and of assistant messages the answers that the run waits for: nothing else is trusted.
"""

from collections.abc import Mapping
from typing import Any, cast

from flask import request
from marshmallow import ValidationError, fields, post_load, validate

from arkloop.api.endpoints.new_runs import CreateRun
from arkloop.api.http.content import MessageContent, reasons
from arkloop.api.http.current import actor
from arkloop.api.http.fields import BoundedList, ClientId
from arkloop.api.http.json_body import BodyLimits
from arkloop.api.http.schema import Schema
from arkloop.api.protocols import sent_files
from arkloop.api.protocols.ai_sdk_dialects import DEFAULT, Dialect
from arkloop.api.protocols.empty_texts import without_empty_texts
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.runs.creation import NewMessage
from arkloop.shared.threads.content import Content

#: Clients send the whole conversation each time.
LIMITS = BodyLimits(
    most_bytes=sent_files.MAX_BODY_BYTES,
    most_values=200_000,
    takes_text=True,
    remedy=f"Send only the last message. {sent_files.REMEDY}",
)
MAX_MESSAGES = 5_000
#: For clients that put a query of their own behind the address.
VERSION_HEADER = "X-AI-SDK-Version"
_NO_VERSION = "must be a version of `ai` from 5 on, such as 7.0.173"

_CONTENT = MessageContent()


class DialectField(fields.String):
    """A version of the package `ai`, of which the client's schema is."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        dialect = Dialect.of(str(super()._deserialize(value, *args, **kwargs)))
        if dialect is None:
            raise ValidationError(_NO_VERSION)
        return dialect


class DialectQuery(Schema):
    ai_sdk = DialectField()


def dialect_of(args: Mapping[str, Any]) -> Dialect:
    """Return the dialect that the query or the header asks for. Raises: InvalidRequest."""
    if "ai_sdk" in args:
        return of_reader(cast("Dialect", args["ai_sdk"]))
    version = request.headers.get(VERSION_HEADER)
    dialect = DEFAULT if version is None else Dialect.of(version)
    if dialect is None:
        raise InvalidRequest(**{VERSION_HEADER: [_NO_VERSION]})
    return of_reader(dialect)


def of_reader(dialect: Dialect) -> Dialect:
    """Return the dialect with approvals that the reader may reply to, and no others."""
    return dialect._replace(org_approvals=actor().end_user_id is None)


class StreamQuery(DialectQuery):
    """`seen` is the id of the last answer that the page has as far as it goes.

    `.` and the id of the approval or call may follow that the page shows as open.
    """

    startIndex = fields.String(validate=validate.Regexp(r"\A-?[0-9]{1,9}\Z"))
    seen = fields.String()


class SentMessage(Schema):
    """A UIMessage, as far as it is looked at."""

    id = ClientId(allow_none=True)
    role = fields.String(required=True, validate=validate.OneOf(["system", "user", "assistant"]))
    parts = fields.List(fields.Dict(), required=True)

    class Meta:
        unknown = "exclude"


class ChatRequest(CreateRun):
    """The fields of a run to create, and those that the client's transports send."""

    id = ClientId(required=True)
    messages = BoundedList(fields.Dict(), least=1, most=MAX_MESSAGES, required=True)
    trigger = fields.String(
        validate=validate.OneOf(["submit-message", "regenerate-message"]),
        load_default="submit-message",
    )
    messageId = fields.String(allow_none=True)

    @post_load
    def choose(self, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Keep the one message that the request is about, as `message`."""
        sent = body.pop("messages")
        place = len(sent) - 1
        if body["trigger"] == "submit-message" and body.get("messageId") is not None:
            # Answers may be those of an earlier message than the last one.
            for number, one in enumerate(sent):
                if one.get("id") == body["messageId"] and one.get("role") == "assistant":
                    place = number
        try:
            body["message"] = _MESSAGE.load(sent[place])
        except ValidationError as error:
            raise ValidationError({"messages": {place: error.messages}}) from None
        return body


_MESSAGE = SentMessage()
CHAT = ChatRequest(exclude=("message",))


def content_of(message: Mapping[str, Any]) -> Content:
    """Return the content of a user's UIMessage, with the files in it stored.

    Raises:
        InvalidRequest, Forbidden, BodyTooLarge, StorageUnavailable
    """
    parts = [part for part in message["parts"] if part.get("type") != "step-start"]
    said = without_empty_texts(parts)
    is_text = all(part.get("type") == "text" for _, part in said)
    if not is_text:
        sent_files.check_count("messages", said)
    read = [_part(part, f"messages.parts.{number}") for number, part in said]
    given = "\n".join(part["text"] for part in read) if is_text else read
    try:
        content: Content = _CONTENT.deserialize(given)
        return content
    except ValidationError as error:
        raise InvalidRequest(messages=reasons(error)) from None


def new_message(message: Mapping[str, Any], content: Content, key: str) -> NewMessage:
    """Return the message to create, which keeps the client's id for it under the key."""
    message_id = message.get("id")
    return NewMessage(content=content, metadata={key: message_id} if message_id else {})


def _part(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "file", "mediaType": str(media_type), "url": str(url)}:
            kind = "image" if media_type.startswith("image/") else "file"
            if (stored := sent_files.file_at(url)) is not None:
                return {"type": kind, "file_id": stored}
            if not url.startswith("data:"):
                return {"type": kind, "url": url}
            file_id = sent_files.stored(name, url, part.get("filename"), is_image=kind == "image")
            return {"type": kind, "file_id": str(file_id)}
    raise InvalidRequest(**{name: ["must be a text part or a file part with a URL"]})
