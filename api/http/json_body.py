"""Bodies and query parameters: read within limits, checked against a schema, refused by name."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from socket import SHUT_RD
from typing import Any, NamedTuple, cast
from urllib.parse import unquote_to_bytes

import gevent
from flask import g, request
from marshmallow import RAISE, ValidationError

from arkloop.api.http.errors import MAX_FIELDS
from arkloop.api.http.schema import Schema
from arkloop.shared import json_text
from arkloop.shared.errors import BodyTooLarge, InvalidRequest, RequestTimeout, UnsupportedMediaType

MAX_BODY_BYTES = 1024 * 1024
BODY_SECONDS = 10  # for the whole body, however it arrives

_PIECE_BYTES = 16_384


class NoArguments(Schema):
    """The schema of a body or query string that has no fields."""


# Made once: making a schema copies its fields, which takes longer than most requests' loading.
_NO_ARGUMENTS = NoArguments()


class BodyLimits(NamedTuple):
    """Bounds of a body; with `takes_text` JSON may come as text/plain, or without a type.

    With `takes_long_integers` those beyond 64 bits are accepted, of at most 1,000 digits. `remedy`
    says what the sender of a larger body can do.

    That is how `fetch` sends a string. A page of another origin can then send it without asking,
    so it is for endpoints that require a bearer token in a header.
    """

    most_bytes: int = MAX_BODY_BYTES
    most_values: int = json_text.MAX_VALUES
    takes_text: bool = False
    takes_long_integers: bool = False
    remedy: str = ""


_LIMITS = BodyLimits()


def read_body(
    schema: Schema, *, optional: bool = False, limits: BodyLimits = _LIMITS
) -> dict[str, Any]:
    """Read the JSON object in the body as `schema` loads it; also refuses any query parameter.

    With `optional`, no body at all counts as `{}`.

    Raises:
        InvalidRequest: not one JSON object that fits the schema.
        UnsupportedMediaType, BodyTooLarge, RequestTimeout: see `read_object`.
    """
    if request.query_string:
        query_args(_NO_ARGUMENTS)
    return load_body(schema, optional=optional, limits=limits)


def load_body(
    schema: Schema, *, optional: bool = False, limits: BodyLimits = _LIMITS
) -> dict[str, Any]:
    """Read the body as `read_body` does, where query parameters are allowed."""
    body = read_object(limits)
    if body is None and not optional:
        raise InvalidRequest(body=["is required: send a JSON object"])
    return cast("dict[str, Any]", _load(schema, body or {}))


def query_args(schema: Schema) -> dict[str, Any]:
    """Read the query parameters as `schema` loads them.

    Raises:
        InvalidRequest: unknown, repeated or malformed ones.
    """
    try:
        unquote_to_bytes(request.query_string).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(query=["is not UTF-8"]) from None
    repeated = {
        name: ["duplicate parameter"] for name, values in request.args.lists() if values[1:]
    }
    if repeated:
        raise InvalidRequest(**repeated)
    if nul := {
        name: ["contains a NUL character"] for name, value in request.args.items() if "\0" in value
    }:
        raise InvalidRequest(**nul)
    return cast("dict[str, Any]", _load(schema, request.args.to_dict()))


def read_items(schema: Schema, *, most: int) -> list[dict[str, Any]]:
    """Read the JSON array in the body, of 1 to `most` objects, each as `schema` loads it.

    Raises:
        InvalidRequest: not one such array; fields are named with the place of their object.
        UnsupportedMediaType, BodyTooLarge, RequestTimeout: see `read_json`.
    """
    body = read_json()
    if not isinstance(body, list) or not 1 <= len(body) <= most:
        raise InvalidRequest(body=[f"must be a JSON array of 1 to {most} objects"])
    return cast("list[dict[str, Any]]", _load(schema, body))


def read_object(limits: BodyLimits = _LIMITS) -> dict[str, Any] | None:
    """Read the JSON object in the body; None if there is no body.

    Raises:
        InvalidRequest: not one strict JSON object.
        UnsupportedMediaType, BodyTooLarge, RequestTimeout: see `read_json`.
    """
    body = read_json(limits)
    if body is not None and not isinstance(body, dict):
        raise InvalidRequest(body=["must be a JSON object"])
    return body


def read_json(limits: BodyLimits = _LIMITS) -> dict[str, Any] | list[Any] | None:
    """Read the JSON in the body, once per request; None if there is no body.

    Raises:
        UnsupportedMediaType: a body that is not `application/json` in UTF-8.
        BodyTooLarge: over `most_bytes`, by its length before it is read, else while it is read.
        RequestTimeout: the body took longer than 10 s, in however small pieces.
        InvalidRequest: not one strict JSON object or array.
    """
    if "body" not in g:
        g.body = _read_json(limits)
    return cast("dict[str, Any] | list[Any] | None", g.body)


def _read_json(limits: BodyLimits) -> dict[str, Any] | list[Any] | None:
    data = _read_bytes(limits)
    if not data:
        return None
    try:
        body = json_text.loads(
            data,
            max_values=limits.most_values,
            takes_long_integers=limits.takes_long_integers,
        )
    except json_text.InvalidJSON as error:
        raise InvalidRequest(**{name: [why] for name, why in error.problems.items()}) from None
    if not isinstance(body, dict | list):
        raise InvalidRequest(body=["must be a JSON object"])
    return body


def _read_bytes(limits: BodyLimits) -> bytes:
    most = limits.most_bytes
    length = request.content_length
    chunked = length is None and "HTTP_TRANSFER_ENCODING" in request.environ
    if not chunked and not length:
        return b""
    _check_media_type(takes_text=limits.takes_text)
    if length is not None and length > most:
        raise _too_large(limits)
    expected = most + 1 if length is None else length
    deadline = gevent.Timeout.start_new(BODY_SECONDS)
    try:
        data = (
            _read_in_pieces(expected) if chunked else request.environ["wsgi.input"].read(expected)
        )
    except gevent.Timeout as timeout:
        if timeout is not deadline:
            raise
        stop_reading()
        raise RequestTimeout() from None
    except Exception as error:  # each server has its own for a broken framing
        raise InvalidRequest(body=["is incomplete or badly framed"]) from error
    finally:
        deadline.close()
    if chunked and len(data) > most:
        raise _too_large(limits)
    if not chunked and len(data) < expected:
        raise InvalidRequest(body=["is shorter than its Content-Length"])
    return data


def _too_large(limits: BodyLimits) -> BodyTooLarge:
    message = f"The body is larger than {limits.most_bytes // 2**20} MiB."
    return BodyTooLarge(f"{message} {limits.remedy}".rstrip())


def _read_in_pieces(most: int) -> bytes:
    """Read a body in pieces, yielding to other requests: one-byte chunks take long to assemble."""
    data = b""
    while len(data) < most:
        piece = request.environ["wsgi.input"].read(min(_PIECE_BYTES, most - len(data)))
        if not piece:
            break
        data += piece
        gevent.sleep(0)
    return data


def _check_media_type(*, takes_text: bool) -> None:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    accepted = ("application/json", "text/plain", "") if takes_text else ("application/json",)
    if (
        request.mimetype not in accepted
        or charset not in ("utf-8", "utf8")
        or "Content-Encoding" in request.headers
    ):
        raise UnsupportedMediaType()


def stop_reading() -> None:
    """Give up the rest of a body: else the server waits for it before it takes another request."""
    socket = request.environ.get("gunicorn.socket")
    if socket is not None:
        with suppress(OSError):  # the client is gone
            socket.shutdown(SHUT_RD)


def _load(schema: Schema, values: Mapping[str, Any] | list[Any]) -> Any:
    if isinstance(values, Mapping) and len(values) > len(schema.load_fields) + MAX_FIELDS:
        values = _without_most_unknown(schema, values)
    problems: dict[str, list[str]] = {}
    try:
        return schema.load(values)
    except ValidationError as error:
        for name, why in _flat(error.messages, ""):
            problems.setdefault(name, []).append(why)
    raise InvalidRequest(**problems)


def _without_most_unknown(schema: Schema, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keep as many unknown fields as a response names: marshmallow makes a message for each."""
    if schema.unknown != RAISE:
        return values
    known = {field.data_key or name for name, field in schema.load_fields.items()}
    unknown = (name for name in values if name not in known)
    kept = known.union(islice(unknown, MAX_FIELDS))
    return {name: value for name, value in values.items() if name in kept}


def _flat(messages: Any, path: str) -> Iterator[tuple[str, str]]:
    """Flatten marshmallow's nested messages to (dotted field, why)."""
    if isinstance(messages, dict):
        for name, inner in messages.items():
            if name == "_schema":
                yield from _flat(inner, path)
            else:
                yield from _flat(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(messages, list):
        for inner in messages:
            yield from _flat(inner, path)
    else:
        yield path or "body", str(messages)
