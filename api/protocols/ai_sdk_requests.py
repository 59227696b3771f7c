"""The body that the AI SDK's transports send, and what of it counts.

It has the whole conversation as the page knows it. Only the newest user message is taken from it,
and of assistant messages the answers that the run waits for: nothing else is trusted.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from flask import request
from marshmallow import Schema, ValidationError, fields, post_load, validate

from arkloop.api.endpoints.new_runs import CreateRun
from arkloop.api.http.content import MessageContent
from arkloop.api.http.current import actor, connections, storage
from arkloop.api.http.fields import BoundedList, ClientId
from arkloop.api.http.json_body import BodyLimits
from arkloop.api.protocols.ai_sdk_projection import DEFAULT, Dialect
from arkloop.shared.errors import Forbidden, InvalidRequest
from arkloop.shared.files import files, incoming
from arkloop.shared.runs.creation import NewMessage
from arkloop.shared.threads.content import Content

#: Clients send the whole conversation each time.
LIMITS = BodyLimits(most_bytes=8 * 1024 * 1024, most_values=200_000, takes_text=True)
MAX_MESSAGES = 5_000
#: For clients that put a query of their own behind the address.
VERSION_HEADER = "X-AI-SDK-Version"
_NO_VERSION = "must be a version of `ai` from 5 on, such as 7.0.173"
#: Where `GET …/messages` says that a file is, whatever is in front of it.
_FILE_URL = re.compile(r"(?:https?://[^/]+)?(?:/[^?#]*)?/v1/files/([0-9a-f-]{36})/content")
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,(?P<data>[A-Za-z0-9+/=\s]*)")
_NAME = re.compile(rf"(?!\.{{1,2}}$)[^/\\]{{1,{files.MAX_NAME_CHARACTERS}}}")

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
        return cast("Dialect", args["ai_sdk"])
    version = request.headers.get(VERSION_HEADER)
    if version is None:
        return DEFAULT
    if (dialect := Dialect.of(version)) is None:
        raise InvalidRequest(**{VERSION_HEADER: [_NO_VERSION]})
    return dialect


class StreamQuery(DialectQuery):
    """`seen` is the id of the last message that the page has."""

    startIndex = fields.String(validate=validate.Regexp(r"-?[0-9]{1,9}"))
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
    if all(part.get("type") == "text" for part in parts):
        given: Any = "\n".join(str(part.get("text")) for part in parts)
    else:
        given = [_part(part, f"messages.parts.{number}") for number, part in enumerate(parts)]
    try:
        content: Content = _CONTENT.deserialize(given)
        return content
    except ValidationError as error:
        raise InvalidRequest(messages=[str(error.messages)]) from None


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
            if (stored := _FILE_URL.fullmatch(url)) is not None:
                return {"type": kind, "file_id": stored[1]}
            if not url.startswith("data:"):
                return {"type": kind, "url": url}
            return {"type": kind, "file_id": str(_stored(part, url, name))}
    raise InvalidRequest(**{name: ["must be a text part or a file part with a URL"]})


def _stored(part: Mapping[str, Any], url: str, name: str) -> UUID:
    """Store the file of a `data:` URL; a message that refers to it may come later, or never."""
    if "data.files.write" not in actor().permissions:
        raise Forbidden("Sending a file requires the scope data.files.write.")
    match = _DATA_URL.fullmatch(url)
    try:
        data = base64.b64decode(match["data"], validate=True) if match else None
    except binascii.Error:
        data = None
    if data is None:
        raise InvalidRequest(**{name: ["`url` must be a data URL in base64"]})
    given = part.get("filename")
    shown = given if isinstance(given, str) else "file"
    if not _NAME.fullmatch(shown) or not shown.isprintable():
        raise InvalidRequest(**{name: ["`filename` must be 1 to 200 characters, without slashes"]})
    who = actor()
    with connections().transaction() as tx:
        file_id = files.create(
            tx, org_id=who.org_id, user_id=who.user_id, end_user_id=who.end_user_id, name=shown
        )
    facts = incoming.store(storage(), files.key_of(who.org_id, file_id), [data])
    with connections().transaction() as tx:
        files.complete(tx, file_id, facts)
    return file_id
