"""Lists page by page: newest first, with an opaque cursor for what comes after.

A cursor names the last row that was shown, to the microsecond, so that a walk
neither skips nor repeats a row. It is signed together with the org, the path
and the filters: elsewhere it is worth nothing.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, Self, TypeVar, get_type_hints
from urllib.parse import urlencode
from uuid import UUID

from flask import Response, request
from itsdangerous import BadData, URLSafeSerializer
from marshmallow import ValidationError, fields, pre_load

from arkloop.api.http.current import actor, public_path, settings
from arkloop.api.http.fields import ClientId, Digits, MetadataFilter
from arkloop.api.http.json_body import query_args
from arkloop.api.http.schema import Schema
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.security.encryption import split
from arkloop.shared.storage.pages import PAGE_BYTES

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
#: Made once: the function `dumps` makes one for every row.
_JSON = json.JSONEncoder(separators=(",", ":"))


class ByTime(NamedTuple):
    """After this row of a list ordered by `(created_at, id)`, newest first."""

    created_at: datetime
    id: UUID

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls(row.created_at, row.id)

    @classmethod
    def at(cls, place: tuple[datetime, UUID] | None) -> Self | None:
        return None if place is None else cls(*place)


class ByPosition(NamedTuple):
    """A cursor before this position of a thread."""

    position: int


#: Readers of the types that the fields of a cursor may have.
_READERS: Mapping[Any, Callable[[str], Any]] = {
    datetime: datetime.fromisoformat,
    UUID: UUID,
    int: int,
    str: str,
}
#: A NamedTuple.
C = TypeVar("C", bound=tuple[Any, ...])
Row = TypeVar("Row")


class PageQuery(Schema):
    """`limit` and `before`; a list with filters adds its own fields to them."""

    limit = Digits(least=1, most=MAX_LIMIT, load_default=DEFAULT_LIMIT)
    before = fields.String()


class ClientDataQuery(PageQuery):
    """A page of objects with client data, filtered by it."""

    end_user_id = ClientId()
    metadata = MetadataFilter()

    @pre_load
    def collect(self, args: dict[str, str], **_: Any) -> dict[str, Any]:
        prefix = "metadata."
        rest = {name: value for name, value in args.items() if not name.startswith(prefix)}
        pairs = {name.removeprefix(prefix): args[name] for name in args if name not in rest}
        if "metadata" in rest:
            raise ValidationError(["must name a key: metadata.<key>=<value>"], "metadata")
        return {**rest, "metadata": pairs} if pairs else rest


@dataclass(frozen=True, slots=True)
class PageArgs(Generic[C]):
    """The requested part of a list; fetch `limit + 1` rows, so that `page` sees the end."""

    limit: int
    before: C | None
    filters: Mapping[str, Any]


def page_args(cursor: type[C], schema: Schema | None = None) -> PageArgs[C]:
    """Read the query parameters of a list; `filters` are all but `limit` and `before`.

    Raises:
        InvalidRequest: bad parameters, or a cursor that is not of this very list.
    """
    args = query_args(schema or PageQuery())
    limit: int = args.pop("limit")
    before: str | None = args.pop("before", None)
    return PageArgs(limit, None if before is None else _decode(before, cursor), args)


def page(
    rows: Sequence[Row],
    args: PageArgs[C],
    *,
    show: Callable[[Row], Mapping[str, Any]],
    cursor_of: Callable[[Row], C],
    oldest_first: bool = False,
    end: C | None = None,
    about: Mapping[str, Any] | None = None,
) -> Response:
    """Build a response with the first `limit` of `rows`, or as many of them as fit `PAGE_BYTES`.

    It is a plain JSON array, or the object `about` with the array as its `entries`. If rows are
    left, `X-Next-Cursor` and `Link` identify the next page. `oldest_first` reverses the order
    within the page. With `end`, more rows may follow behind this cursor, however few these are.
    """
    shown: list[str] = []
    size = 0
    for row in rows[: args.limit]:
        text = _JSON.encode(show(row))
        size += len(text)
        if shown and size > PAGE_BYTES:
            break
        shown.append(text)
    entries = "[" + ",".join(reversed(shown) if oldest_first else shown) + "]"
    body = entries if about is None else f'{_JSON.encode(about)[:-1]},"entries":{entries}}}'
    response = Response(body + "\n", mimetype="application/json")
    return with_next(response, cursor_of(rows[len(shown) - 1]) if len(rows) > len(shown) else end)


def with_next(response: Response, following: tuple[Any, ...] | None) -> Response:
    """Name the next page in the headers of a page, unless it is the last one."""
    if following is not None:
        cursor = _encode(following)
        query = urlencode({**request.args.to_dict(), "before": cursor})
        response.headers["X-Next-Cursor"] = cursor
        response.headers["Link"] = f'<{public_path(request.path)}?{query}>; rel="next"'
    return response


def _encode(cursor: tuple[Any, ...]) -> str:
    texts = [v.astimezone(UTC).isoformat() if isinstance(v, datetime) else str(v) for v in cursor]
    return str(_cursors(split(settings().jwt_secret)[0]).dumps(texts))


def _decode(cursor: str, kind: type[C]) -> C:
    texts = next(filter(None, (_texts(cursor, key) for key in split(settings().jwt_secret))), None)
    if texts is None:
        raise InvalidRequest(before=["is not a valid cursor for this list"])
    types = get_type_hints(kind).values()
    return kind(*(_READERS[type_](text) for type_, text in zip(types, texts, strict=True)))


def _texts(cursor: str, key: str) -> list[str] | None:
    """Return what a cursor of this list has that this key has signed; None if it has not."""
    try:
        texts: list[str] = _cursors(key).loads(cursor)
    except BadData:
        return None
    # Base64 has more than one spelling of the same bytes; ours is the only one taken.
    return texts if cursor == _cursors(key).dumps(texts) else None


def _cursors(key: str) -> URLSafeSerializer:
    """Return what signs and reads the cursors of this list, by its org, path and filters."""
    paging = ("limit", "before")
    filters = sorted(item for item in request.args.items() if item[0] not in paging)
    place = json.dumps(["cursors", str(actor().org_id), request.path, filters])
    signer = {"digest_method": hashlib.sha256}
    return URLSafeSerializer(key, place, signer_kwargs=signer)
