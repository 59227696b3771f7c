"""Request bodies that are malformed, oversized, deeply nested or expensive to check."""

import json
import random
from collections.abc import Callable

MIB = 1 << 20

#: Strings that parsers, databases and validators have failed on elsewhere.
STRINGS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\x1b[2J",
    "\ud800",
    "‮",
    "𝔘" * 50,
    "a" * 300,
    "€" * 10_923,
    "../../etc/passwd",
    "' OR 1=1 --",
    "{{7*7}}",
    "${jndi:ldap://127.0.0.1/a}",
    "http://[",
    "http://127.0.0.1:1/",
    "9999-12-31T23:59:59.999999-23:59",
    "10000-01-01T00:00:00Z",
    "0000-00-00T00:00:00Z",
    "2026-02-30T00:00:00Z",
    "assistant@" + "9" * 64,
    "00000000-0000-7000-8000-000000000000",
    "١٢٣",
)
NUMBERS = (
    "0",
    "-0",
    "-1",
    "1e999",
    "1e-999",
    "NaN",
    "Infinity",
    "-Infinity",
    "9223372036854775808",
    "9" * 5_000,
    "0.1" + "0" * 400,
    "1E400",
    "00",
    "1.",
)
#: Field names of the API's own schemas: an unknown field would end most checks early.
FIELDS = (
    "title",
    "is_private",
    "content",
    "request_id",
    "route_id",
    "persona_id",
    "login",
    "email",
    "password",
    "current",
    "new",
    "name",
    "scopes",
    "expires_at",
    "max_cost_usd",
    "max_cost_usd_per_month",
    "kind",
    "base_url",
    "api_key",
    "models",
    "model",
    "prices",
    "url",
    "command",
    "headers",
    "transport",
    "tools",
    "hash",
    "key",
    "version",
    "prompt",
)


def small(rng: random.Random) -> bytes:
    """Return a body of at most a few kilobytes; it may not be JSON."""
    return rng.choice(_SMALL)(rng)


def large(rng: random.Random) -> bytes:
    """Return a body of about 1 MiB that is expensive for a careless parser or validator."""
    return rng.choice(_LARGE)(rng)[:MIB]


def _string(rng: random.Random) -> str:
    return json.dumps(rng.choice(STRINGS))


def _value(rng: random.Random, depth: int = 0) -> str:
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice(("true", "false", "null"))
    if kind in (5, 6):
        return "[" + ",".join(_value(rng, depth + 1) for _ in range(rng.randrange(5))) + "]"
    if kind == 7:
        return _object(rng, depth + 1)
    return _string(rng)


def _object(rng: random.Random, depth: int = 0) -> str:
    names = [rng.choice(FIELDS) for _ in range(rng.randrange(6))]
    fields = (f"{json.dumps(name)}:{_value(rng, depth)}" for name in names)
    return "{" + ",".join(fields) + "}"


def _json(rng: random.Random) -> bytes:
    return _object(rng).encode()


def _broken(rng: random.Random) -> bytes:
    body = bytearray(_object(rng).encode() or b"{}")
    for _ in range(rng.randrange(1, 4)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(body)


def _other_encoding(rng: random.Random) -> bytes:
    encoding = rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1"))
    return '{"title": "é"}'.encode(encoding)


def _nested(rng: random.Random) -> bytes:
    depth = rng.choice((63, 64, 65, 500, 2_000))
    return b'{"title":' + b"[" * depth + b"]" * depth + b"}"


_SMALL: tuple[Callable[[random.Random], bytes], ...] = (
    _json,
    _json,
    _json,
    _broken,
    _other_encoding,
    _nested,
    lambda rng: rng.randbytes(rng.randrange(200)),
    lambda rng: b"",
    lambda rng: rng.choice((b"null", b"[]", b"0", b'""', b"{", b'{"a":1,"a":2}')),
)

_LARGE: tuple[Callable[[random.Random], bytes], ...] = (
    # A long key above a long list: a path for each item would be 500 kB.
    lambda rng: b'{"' + b"k" * 500_000 + b'":[' + b"1," * 260_000 + b"1]}",
    lambda rng: b'{"' + b"k" * 500_000 + b'":[' + b"NaN," * 2_000 + b"1]}",
    lambda rng: b'{"a":[' + b"NaN," * 260_000 + b"NaN]}",
    lambda rng: b"{" + b",".join(b'"%d":0' % n for n in range(100_000)) + b"}",
    lambda rng: b"{" + b'"a":0,' * 170_000 + b'"a":0}',
    lambda rng: b'{"title":' + b"[" * (MIB // 2 - 10) + b"]" * (MIB // 2 - 10) + b"}",
    lambda rng: b'{"title":"' + b"\\ud800" * 170_000 + b'"}',
    lambda rng: b'{"title":"' + b"\\u0000" * 170_000 + b'"}',
    lambda rng: b'{"title":' + b"9" * (MIB - 20) + b"}",
    lambda rng: b'{"scopes":[' + b'"x",' * 260_000 + b'"x"],"name":"n"}',
    lambda rng: b'{"command":[' + b'"",' * 340_000 + b'""],"name":"n","transport":"stdio"}',
    lambda rng: b'{"tools":[' + b"{}," * 340_000 + b"{}]}",
    lambda rng: b'{"name":"n","kind":"openai","models":[' + b"{}," * 330_000 + b"{}]}",
    lambda rng: (
        b'{"name":"n","url":"http://a/","headers":{'
        + b",".join(b'"h%d":"v"' % n for n in range(80_000))
        + b"}}"
    ),
    lambda rng: b'{"key":"k","tools":[' + b'"t",' * 260_000 + b'"t"]}',
    lambda rng: b'{"key":"k","prompt":"' + b"p" * (MIB - 100) + b'"}',
    lambda rng: b'{"content":"' + b"x" * (MIB - 100) + b'"}',
    lambda rng: b"[" * MIB,
    lambda rng: b" " * MIB,
    lambda rng: b'"' + b"\\" * MIB,
)
