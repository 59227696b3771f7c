"""Spans in the form of OTLP 1: protocol buffers, written by hand.

The numbers of fields never change within a major version of the protocol, and a span takes a
fraction of the time that the generated classes need; tests read the result with those.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import Struct, pack

from arkloop.shared.spans import Attribute, Common, Span

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"

_SCOPE = "arkloop"
_ERROR = b"\x7a\x02\x18\x02"  # status (15), of 2 bytes: code (3) = 2
#: kind (6), start (7) and end (8), each after its tag.
_KIND_AND_TIMES = Struct("<BBBQBQ")
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
    parent = f"2208{span.parent_id}" if span.parent_id else ""  # (4), of 8 bytes
    pieces = [
        # trace (1), of 16 bytes, and span (2), of 8
        bytes.fromhex(f"0a10{span.trace_id}1208{span.span_id}{parent}"),
        _named(5, span.name),
        _KIND_AND_TIMES.pack(0x30, span.kind, 0x39, span.began, 0x41, span.ended),
    ]
    if span.common:
        pieces.append(_of_many(span.common))
    for name, value in span.attributes.items():
        if name in _OF_ONE and isinstance(value, str):
            text = _cut(value)
            pieces += (_before(name, len(text)), text)
        elif isinstance(value, float):
            pieces.append(_of_span(name, value))
        else:
            pieces.append(_repeated(name, value))
    if span.error is not None:
        pieces += (_repeated("error.type", span.error), _ERROR)
    return _part(2, b"".join(pieces))


@lru_cache(1_000)
def _of_many(common: Common) -> bytes:
    return b"".join(_of_span(name, value) for name, value in common if value is not None)


def _of_span(name: str, value: Attribute) -> bytes:
    """Encode an attribute as the field 9 of a span."""
    return _part(9, _attribute(name, value))


@lru_cache(1_000, typed=True)  # 1 is another value than True
def _repeated(name: str, value: Attribute) -> bytes:
    """Encode an attribute that many spans have with the same value; None: nothing."""
    return b"" if value is None else _of_span(name, value)


@lru_cache(1_000)
def _before(name: str, size: int) -> bytes:
    """Encode all of an attribute that precedes its text of `size` bytes."""
    head = _head(1, size)
    attribute = _named(1, name) + _head(2, len(head) + size) + head
    return _head(9, len(attribute) + size) + attribute


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
    return _part(number, _cut(text))


def _cut(text: str) -> bytes:
    return text[:MAX_CHARACTERS].encode(errors="replace")


@lru_cache(1_000)
def _named(number: int, text: str) -> bytes:
    """Encode a text of which there are few different ones."""
    return _text(number, text)


def _part(number: int, content: bytes) -> bytes:
    """Encode a field that has a length."""
    return _head(number, len(content)) + content


def _head(number: int, size: int) -> bytes:
    if size < 128:
        return bytes((number << 3 | 2, size))
    return bytes((number << 3 | 2,)) + _varint(size)


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)
