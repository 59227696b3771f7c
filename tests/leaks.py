"""Secrets in what the tests have left: databases, Redis, and logs of all processes.

What is looked for are the forms of the secrets that the service issues or is given, and `canary-`,
by which tests mark those of others. The user's own text may contain anything; it is not searched.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg import sql

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.events import prompts

#: Forms of secrets, by kind.
FORMS: dict[str, re.Pattern[bytes]] = {
    "API key": re.compile(rb"\bal_[0-9A-Za-z]{36}\b"),
    "client token": re.compile(rb"\balc_ey[\w-]{20,}"),
    "JWT": re.compile(rb"\bey[IJ][\w-]{15,}\.ey[IJ][\w-]{15,}\.[\w-]{16,}"),
    "Authorization header": re.compile(
        rb"(?i)authorization\W{1,5}(?:bearer|basic)\s+[\w.~+/=-]{8}"
    ),
    "webhook secret": re.compile(rb"\bwhsec_[0-9A-Za-z+/]{32,}"),
    "invitation": re.compile(rb"\bali_[\w-]{43}"),
    "reset of a password": re.compile(rb"\balr_[\w-]{43}"),
    "password in a URL": re.compile(
        rb"\b(?:postgres(?:ql)?(?:\+psycopg)?|rediss?)://[^\s:@/]*:[^\s:@/]{4,}@"
    ),
    "secret of a test": re.compile(rb"canary-[\w-]+"),
}
#: Bytes before a secret that a report shows.
SHOWN = 120
#: Tables with text that users, models and tools wrote: secrets are looked for by value alone there.
OWN_TEXT = {"messages", "run_events", "runs", "run_metadata", "sub_runs", "thread_contexts"}
OWN_TEXT |= {"thread_metadata", "threads", "tool_calls"}


@dataclass(frozen=True, slots=True)
class Leak:
    """A secret that was found, by its kind and place; never the secret itself.

    `before` is what stands before it, without what has the form of a secret.
    """

    kind: str
    where: str
    before: str = ""

    def __str__(self) -> str:
        return f"{self.kind} in {self.where}" + (f", after {self.before!r}" if self.before else "")


def in_bytes(content: bytes, where: str, also: Iterable[tuple[str, bytes]] = ()) -> list[Leak]:
    """Find secrets of the known forms, and those of `also`: their kinds and values."""
    found = [
        Leak(kind, where, _before(content, match.start()))
        for kind, form in FORMS.items()
        if (match := form.search(content))
    ]
    return found + _by_value(content, where, also)


def _before(content: bytes, at: int) -> str:
    """Return what stands before a place: who has written it is seen there."""
    text = content[max(0, at - SHOWN) : at]
    for form in FORMS.values():
        text = form.sub(b"[secret]", text)
    return text.decode(errors="replace")


def _by_value(content: bytes, where: str, also: Iterable[tuple[str, bytes]]) -> list[Leak]:
    return [Leak(kind, where) for kind, secret in also if secret in content]


def _in_place(
    content: bytes, where: str, also: Iterable[tuple[str, bytes]], is_own_text: bool
) -> list[Leak]:
    return (_by_value if is_own_text else in_bytes)(content, where, also)


def in_databases(
    server: EmbeddedPostgres, also: Iterable[tuple[str, bytes]] = (), *, only: str | None = None
) -> list[Leak]:
    """Search each table of each database of the server that has rows, as a dump has them."""
    found: list[Leak] = []
    with psycopg.connect(plain(server.url)) as opened:
        names = opened.execute("SELECT datname FROM pg_database WHERE datallowconn").fetchall()
    for (name,) in names:
        if only in (None, name):
            with psycopg.connect(plain(server.url_of(name))) as opened:
                for table, content in _dumped(opened):
                    found += _in_place(content, f"{name}.{table}", also, table in OWN_TEXT)
    return found


def plain(url: str) -> str:
    """Return a URL of psycopg's own."""
    return url.replace("+psycopg", "", 1)


def _dumped(opened: psycopg.Connection[Any]) -> Iterator[tuple[str, bytes]]:
    tables = opened.execute(
        "SELECT relname, coalesce((SELECT inhparent::regclass::text FROM pg_inherits"
        " WHERE inhrelid = c.oid), relname) FROM pg_class c"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " AND pg_relation_size(oid) > 0"
    ).fetchall()
    for name, table in tables:
        with opened.cursor().copy(
            sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(name))
        ) as rows:
            yield table, b"".join(bytes(row) for row in rows)
    if "run_events" in {table for _, table in tables} and _has_prompts(opened):
        yield "run_events", prompts_in(opened)


def _has_prompts(opened: psycopg.Connection[Any]) -> bool:
    """Return whether the schema is one that has prompts; that of an earlier release has not."""
    column = "SELECT FROM pg_attribute WHERE attrelid = 'run_events'::regclass"
    return opened.execute(f"{column} AND attname = 'prompts'").fetchone() is not None


def prompts_in(opened: psycopg.Connection[Any]) -> bytes:
    """Return what vendors received; a dump has it compressed."""
    rows = opened.execute(
        "SELECT run_id, seq, prompts FROM run_events WHERE prompts IS NOT NULL ORDER BY run_id, seq"
    ).fetchall()
    of_runs = itertools.groupby(rows, key=lambda row: row[0])
    found = (prompts.read((seq, stored) for _, seq, stored in run) for _, run in of_runs)
    return b"\n".join(prompt.body() or b"" for run in found for prompt in run)


def in_redis(url: str, also: Iterable[tuple[str, bytes]] = ()) -> list[Leak]:
    """Search each key and value. Streams of runs have the user's text and are read for `also`."""
    found: list[Leak] = []
    store = redis.Redis.from_url(url)
    readers = {
        b"string": store.get,
        b"hash": store.hgetall,
        b"list": lambda key: store.lrange(key, 0, -1),
        b"set": store.smembers,
        b"zset": lambda key: store.zrange(key, 0, -1),
        b"stream": store.xrange,
    }
    for key in store.scan_iter():
        kind = store.type(key)
        content = key + b" " + repr(readers[kind](key)).encode() if kind in readers else key
        where = f"Redis, {key.decode(errors='replace')}"
        found += _in_place(content, where, also, kind == b"stream")
    store.close()
    return found


def in_logs(folder: Path, also: Iterable[tuple[str, bytes]] = ()) -> list[Leak]:
    """Search the logs of processes below a folder."""
    found: list[Leak] = []
    for log in sorted(folder.rglob("*.log")):
        if log.is_file():
            found += in_bytes(log.read_bytes(), f"{log.parent.name}/{log.name}", also)
    return found
