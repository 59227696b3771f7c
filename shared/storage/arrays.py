"""Arrays as parameters, one for however many values: a statement has at most 65,535 parameters.

The driver writes a list of strings as an array literal: it quotes and escapes every character, at
0.7 s for a million that need it, during which no other run of the process gets on. Those of strings
and bytes have Postgres' binary format here, in which a string is its length and its bytes.
"""

import struct
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from uuid import UUID

from psycopg import adapters, postgres
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import ARRAY, ColumnElement, Uuid, any_, literal

_TEXT, _BYTEA = postgres.types["text"], postgres.types["bytea"]
#: Number of dimensions, whether there are NULLs, type of the elements, their number, first index;
#: see `array_recv` in Postgres' src/backend/utils/adt/arrayfuncs.c.
_HEADER = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)


class TextArray(tuple[str | None, ...]):
    """Strings and NULLs, passed to a statement as one array."""

    __slots__ = ()


class ByteArray(tuple[bytes | None, ...]):
    """Bytes and NULLs, passed to a statement as one array."""

    __slots__ = ()


class _TextArrayDumper(Dumper):
    format = Format.BINARY
    oid = _TEXT.array_oid

    def dump(self, obj: Sequence[str | None]) -> bytes:
        return _dump(_TEXT.oid, [None if value is None else value.encode() for value in obj])


class _ByteArrayDumper(Dumper):
    format = Format.BINARY
    oid = _BYTEA.array_oid

    def dump(self, obj: Sequence[bytes | None]) -> bytes:
        return _dump(_BYTEA.oid, obj)


def _dump(oid: int, values: Sequence[bytes | None]) -> bytes:
    parts = [_HEADER.pack(1, None in values, oid, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)


adapters.register_dumper(TextArray, _TextArrayDumper)
adapters.register_dumper(ByteArray, _ByteArrayDumper)


def plain_array(values: Iterable[object]) -> str:
    """Return an array in Postgres' own notation, of values that need no quotes; None is NULL.

    UUIDs, numbers, booleans and words of our own. Several times as fast as the driver's
    conversion of a list.
    """
    return "{" + ",".join("NULL" if value is None else str(value) for value in values) + "}"


def is_among(column: ColumnElement[Any], ids: Collection[UUID]) -> ColumnElement[bool]:
    """Build SQL: the id is one of these, however many they are."""
    return column == any_(literal(list(ids), ARRAY(Uuid)))
