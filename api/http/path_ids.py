"""Ids in paths: `<id:run_id>` gives the view a UUID, `<response:response_id>` a text."""

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


class ResponseConverter(BaseConverter):
    """Takes what may be the id of a response, before a `:verb`. Else `/v1/responses/compact`, an
    endpoint of others, would be a response to which its method does not apply: 405 for 404.
    """

    regex = "resp_[^/:]*"


def check(view_args: Mapping[str, Any]) -> None:
    """Check the ids and names in a path.

    Raises:
        InvalidRequest: an id is not a canonical UUIDv7, or a name has a NUL, which no name has.
    """
    for name, value in view_args.items():
        if isinstance(value, NotAnId):
            raise InvalidRequest(**{name: ["must be a lower-case UUIDv7 with dashes"]})
        if isinstance(value, str) and "\0" in value:
            raise InvalidRequest(**{name: ["must not contain a NUL"]})
