"""Ids in paths: `<id:run_id>` gives the view a UUID, `<name:response_id>` a text."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from werkzeug.routing import BaseConverter

from arkloop.shared.errors import InvalidRequest
from arkloop.shared.ids import parse_id


class NotAnId(str):
    """A path segment that is not an id; kept until the caller is known."""


class IdConverter(BaseConverter):
    """Takes any text, so that who may not ask learns nothing from a 422; `check` comes after."""

    regex = "[^/:]+"

    def to_python(self, value: str) -> UUID | NotAnId:
        return parse_id(value) or NotAnId(value)

    def to_url(self, value: UUID) -> str:
        return str(value)


class NameConverter(BaseConverter):
    """Takes a name before a `:verb`, which is no part of it."""

    regex = "[^/:]+"


def check(view_args: Mapping[str, Any]) -> None:
    """Check the ids in a path. Raises: InvalidRequest: one is not a canonical UUIDv7."""
    for name, value in view_args.items():
        if isinstance(value, NotAnId):
            raise InvalidRequest(**{name: ["must be a lower-case UUIDv7 with dashes"]})
