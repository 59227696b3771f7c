"""The content of a message in a request body: a string, or a list of parts."""

import re
from typing import Any, ClassVar

from marshmallow import ValidationError, fields

from arkloop.api.http.fields import Id, JsonSchema
from arkloop.shared.ids import parse_id
from arkloop.shared.threads.content import Content

MAX_CONTENT_BYTES = 262_144
MAX_PARTS = 20
MAX_URL_CHARACTERS = 2_000
_URL = re.compile(r"https://[^\s/?#@\\]+([/?][\x21-\x7e]*)?")


def _part(kinds: list[str], name: str, value: JsonSchema) -> JsonSchema:
    return {
        "type": "object",
        "properties": {"type": {"enum": kinds}, name: value},
        "required": ["type", name],
        "additionalProperties": False,
    }


class MessageContent(fields.Field[Content]):
    """Loads a `Content`; whether its files exist is checked where the message is stored."""

    json_schema: ClassVar[JsonSchema] = {
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": MAX_CONTENT_BYTES},
            {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_PARTS,
                "items": {
                    "anyOf": [
                        _part(["text"], "text", {"type": "string", "minLength": 1}),
                        _part(["image", "file"], "file_id", Id.json_schema),
                        _part(
                            ["image", "file"],
                            "url",
                            {
                                "type": "string",
                                "maxLength": MAX_URL_CHARACTERS,
                                "pattern": f"^{_URL.pattern}$",
                            },
                        ),
                    ]
                },
            },
        ]
    }

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> Content:
        if isinstance(value, str):
            _check_length(value)
            return Content.of(value)
        if not isinstance(value, list):
            raise ValidationError("must be a string or a list of parts")
        if not 1 <= len(value) <= MAX_PARTS:
            raise ValidationError(f"must have 1 to {MAX_PARTS} parts")
        problems: dict[str, list[str]] = {}
        for number, part in enumerate(value):
            try:
                _check_part(part)
            except ValidationError as error:
                problems[str(number)] = [str(message) for message in error.messages]
        if problems:
            raise ValidationError(problems)
        _check_length("".join(part["text"] for part in value if part["type"] == "text"), least=0)
        return Content.of(value)


def reasons(error: ValidationError) -> list[str]:
    """Return why a `MessageContent` was refused, whichever of its parts the reasons are for."""
    by_part = error.messages.values() if isinstance(error.messages, dict) else [error.messages]
    return [str(why) for of_part in by_part for why in of_part]


def _check_length(text: str, least: int = 1) -> None:
    if not least <= len(text.encode()) <= MAX_CONTENT_BYTES:
        raise ValidationError(f"must have {least} to {MAX_CONTENT_BYTES} bytes of UTF-8")


def _check_part(part: Any) -> None:
    match part:
        case {"type": "text", "text": str(text), **others} if text and not others:
            return
        case {"type": "image" | "file", "file_id": str(file_id), **others} if not others:
            if parse_id(file_id) is None:
                raise ValidationError("`file_id` must be a lower-case UUIDv7 with dashes")
        case {"type": "image" | "file", "url": str(url), **others} if not others:
            if len(url) > MAX_URL_CHARACTERS or not _URL.fullmatch(url):
                raise ValidationError(
                    f"`url` must be an https URL of at most {MAX_URL_CHARACTERS} characters,"
                    " without credentials"
                )
        case _:
            raise ValidationError(
                'must be {"type": "text", "text": …}, with a text that is not empty, or'
                ' {"type": "image" or "file"} with either `file_id` or `url`'
            )
