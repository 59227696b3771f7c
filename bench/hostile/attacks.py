"""Hostile HTTP requests over the API's own URL map, drawn from a seeded generator."""

import base64
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from flask import Flask

from bench.hostile import bodies

#: One request in this number has a body of about 1 MiB.
LARGE_EVERY = 100

_QUERY_NAMES = (
    "limit",
    "before",
    "after_seq",
    "follow",
    "named",
    "ticket",
    "status",
    "from",
    "to",
    "persona",
    "api_key_id",
    "lastEventId",
    "x",
)
_QUERY_VALUES = (
    *(quote(text.encode("utf-8", "surrogatepass")) for text in bodies.STRINGS),
    *bodies.NUMBERS,
    "%ff",
    "%00",
    "٣",
    "+5",
    "1_0",
    "true",
    "%f0%9f",
)
_HEADERS = (
    ("Idempotency-Key", "k"),
    ("Idempotency-Key", "k" * 256),
    ("Idempotency-Key", "\x7f"),
    ("Origin", "http://["),
    ("Origin", "null"),
    ("Host", "evil.example"),
    ("Host", "[::1"),
    ("Cookie", "arkloop_refresh_token=x"),
    ("Cookie", "arkloop_refresh_token=" + "x" * 4_000),
    ("Last-Event-ID", "-1"),
    ("Last-Event-ID", "99999999999999999999"),
    ("Content-Type", "text/plain"),
    ("Content-Type", "application/json; charset=utf-7"),
    ("Content-Encoding", "gzip"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Forwarded-Prefix", "//evil.example"),
    ("X-HTTP-Method-Override", "DELETE"),
    ("Expect", "100-continue"),
    ("Traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-00"),
    ("X-Long", "x" * 7_000),
)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PURGE")
#: Whole requests that no HTTP server should accept; each ends its connection.
_RAW = (
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /v1/runs\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 9_000 + b"\r\n\r\n",
    b"POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Content-Length: 6\r\n\r\nabcdef",
    b"POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    b"POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer x\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n",
)


@dataclass(frozen=True, slots=True)
class Attack:
    """A request as bytes; `method` decides whether the reader of its response expects a body."""

    method: str
    content: bytes
    description: str
    #: The server closes the connection after it.
    is_last: bool = False


def attacks(app: Flask, tokens: Sequence[str], ids: Sequence[str], seed: int) -> Iterator[Attack]:
    """Yield hostile requests without end; equal arguments give equal requests.

    `tokens` are valid credentials and `ids` ids of objects that some of them can see.
    """
    rng = random.Random(seed)
    rules = [
        (rule.rule, sorted(rule.methods or ()))
        for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule)
    ]
    writes = [
        (method, path)
        for path, methods in rules
        for method in methods
        if method in ("POST", "PUT", "PATCH")
    ]
    credentials = [*tokens, *tokens, *_forged(), None]
    number = 0
    while True:
        number += 1
        if rng.random() < 0.02:
            raw = rng.choice(_RAW)
            yield Attack("GET", raw, repr(raw[:80]), is_last=True)
            continue
        if number % LARGE_EVERY == 0:
            method, path = rng.choice(writes)
            path = re.sub(r"<[^>]*>", lambda _: rng.choice(ids), path)
            yield _request(
                rng, method, path, rng.choice(credentials), bodies.large(rng), plain=True
            )
            continue
        path, methods = rng.choice(rules)
        method = rng.choice(methods if rng.random() < 0.85 else _METHODS)
        yield _request(
            rng, method, _fill(rng, path, ids), rng.choice(credentials), bodies.small(rng)
        )


def _fill(rng: random.Random, path: str, ids: Sequence[str]) -> str:
    def part(_: re.Match[str]) -> str:
        if rng.random() < 0.6:
            return rng.choice(ids)
        return quote(rng.choice(bodies.STRINGS).encode("utf-8", "surrogatepass")[:200], safe="")

    return re.sub(r"<[^>]*>", part, path)


def _request(
    rng: random.Random,
    method: str,
    path: str,
    token: str | None,
    body: bytes,
    *,
    plain: bool = False,
) -> Attack:
    """Make a request; `plain` ones are valid but for their body."""
    query = [
        f"{rng.choice(_QUERY_NAMES)}={rng.choice(_QUERY_VALUES)}"
        for _ in range(0 if plain else rng.choice((0, 0, 0, 1, 2)))
    ]
    # A stream that follows a live run would only wait.
    if path.endswith("/events") and rng.random() < 0.9:
        query.append("follow=false")
    target = path + ("?" + "&".join(query) if query else "")
    headers = {"Host": "127.0.0.1", "Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    for _ in range(0 if plain else rng.choice((0, 0, 1, 2))):
        name, value = rng.choice(_HEADERS)
        headers[name] = value
    has_body = method not in ("GET", "HEAD", "OPTIONS", "TRACE") or rng.random() < 0.05
    content = body if has_body else b""
    if content and rng.random() < 0.2:
        headers["Transfer-Encoding"] = "chunked"
        content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    elif has_body:
        headers["Content-Length"] = str(len(content))
    head = f"{method} {target} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    shown = f"{method} {target[:120]} {len(content)} bytes {content[:60]!r}"
    return Attack(method, head.encode("utf-8") + b"\r\n" + content, shown)


def _forged() -> list[str]:
    """Return tokens that are no credentials: malformed, unsigned, or for another key."""

    def part(fields: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=").decode()

    claims = part({"sub": "x", "exp": 1e308})
    return [
        "x",
        "al_" + "A" * 43,
        "al_" + "é",
        part({"alg": "none"}) + f".{claims}.",
        part({"alg": "HS256", "kid": "../../dev/null", "crit": ["x"]}) + f".{claims}.AAAA",
        "a.b.c",
        "x" * 5_000,
    ]
