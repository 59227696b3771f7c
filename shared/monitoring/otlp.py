"""Spans in the form of OTLP 1: protocol buffers, written by hand.

The numbers of fields never change within a major version of the protocol, and a span takes a
fraction of the time that the generated classes need; tests read the result with those.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import pack

from arkloop.shared.spans import Attribute, Span

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"

_SCOPE = "arkloop"
_ERROR = b"\x7a\x02\x18\x02"  # status (15), of 2 bytes: code (3) = 2
#: Attributes that few spans have with the same text.
_OF_ONE = frozenset(
    {
        "arkloop.run.id",
        "gen_ai.conversation.id",
        "gen_ai.tool.call.id",
        "messaging.message.id",
    }
)
#: Longer texts are cut: names that vendors and orgs choose may have any length.
MAX_CHARACTERS = 1_000


def request(resource: Mapping[str, str], spans: Iterable[Span]) -> bytes:
    """Return an `ExportTraceServiceRequest` with the spans of one process."""
    scope = _text(1, _SCOPE)
    scope_spans = _part(1, scope) + b"".join(map(_span, spans)) + _text(3, SCHEMA_URL)
    described = b"".join(_part(1, _attribute(*item)) for item in resource.items())
    resource_spans = _part(1, described) + _part(2, scope_spans) + _text(3, SCHEMA_URL)
    return _part(1, resource_spans)


def _span(span: Span) -> bytes:
    pieces = [
        _part(1, bytes.fromhex(span.trace_id)),
        _part(2, bytes.fromhex(span.span_id)),
        _part(4, bytes.fromhex(span.parent_id)) if span.parent_id else b"",
        _named(5, span.name),
        bytes((6 << 3, span.kind)),
        pack("<BQBQ", 7 << 3 | 1, span.began, 8 << 3 | 1, span.ended),
    ]
    for name, value in span.attributes.items():
        if value is None:
            continue
        if isinstance(value, str) and name not in _OF_ONE:
            pieces.append(_repeated(name, value))
        else:
            pieces.append(_of_span(name, value))
    if span.error is not None:
        pieces += (_part(9, _attribute("error.type", span.error)), _ERROR)
    return _part(2, b"".join(pieces))


def _of_span(name: str, value: Attribute) -> bytes:
    """Encode an attribute as the field 9 of a span."""
    return _part(9, _attribute(name, value))


@lru_cache(1_000)
def _repeated(name: str, value: str) -> bytes:
    """Encode an attribute that many spans have with the same text."""
    return _of_span(name, value)


def _attribute(name: str, value: Attribute) -> bytes:
    return _named(1, name) + _part(2, _value(value))


def _value(value: Attribute) -> bytes:
    if isinstance(value, str):
        return _text(1, value)
    if isinstance(value, bool):
        return bytes((2 << 3, value))
    if isinstance(value, int):
        return b"\x18" + _varint(value & (1 << 64) - 1)
    if isinstance(value, float):
        return b"\x21" + pack("<d", value)
    return _part(5, b"".join(_part(1, _value(one)) for one in value or ()))


def _text(number: int, text: str) -> bytes:
    return _part(number, text[:MAX_CHARACTERS].encode(errors="replace"))


@lru_cache(1_000)
def _named(number: int, text: str) -> bytes:
    """Encode a text of which there are few different ones."""
    return _text(number, text)


def _part(number: int, content: bytes) -> bytes:
    """Encode a field that has a length."""
    size = len(content)
    if size < 128:
        return bytes((number << 3 | 2, size)) + content
    return bytes((number << 3 | 2,)) + _varint(size) + content


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)
