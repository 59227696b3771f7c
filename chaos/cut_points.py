"""Cut one run's stream at a thousand places, and hold what came together against the table.

A reader takes a random number of bytes of the body from a raw socket, hangs up, and comes back
with `Last-Event-ID` to any of the servers, until it has the last event. It keeps whole frames
alone. The data lines of all its connections must be the rows of `run_events`, byte for byte.

    .venv/bin/python -m chaos.cut_points [--cuts 1000] [--live 40] [--seed 1]

Exit status 1 if a line differs.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import select

from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from chaos.clients.client import Access, Client, Request, Tally
from chaos.clients.event_stream import BrokenAnswer, Chunks, Frame, Frames
from chaos.journal import Journal
from chaos.system.stack import Stack

#: Readers of an ended run.
AT_ONCE = 4
SILENCE_SECONDS = 30.0
READ_BYTES = 16_384
#: Bytes within which a live reader is cut.
LIVE_BYTES = 8_000
TURNS = 24
#: Line ends that are none, half a character of any encoding, what JSON escapes, what SSE means.
WORDS = (
    "naïve ",
    "日本語テキスト ",
    "🧑🏽‍🚀🇫🇷 ",
    "שלום\u200f ",
    "e\u0301\u0308 ",
    "a\u2028b\u2029c\u0085d ",
    "one\r\ntwo\n\n",
    "data: {}\nid: 7\n\n",
    '"quo\\ted"\t ',
    "\u0001\u001f\u007f\ufeff ",
    "plain words ",
)


@dataclass(frozen=True)
class Service:
    """The service that the run is read from, and what the run must be."""

    urls: Sequence[str]
    token: str
    connections: Connections

    def stored(self, run_id: str) -> list[str]:
        """Return the data lines as Postgres has them."""
        rows = (
            select(run_events.c.payload)
            .where(run_events.c.run_id == UUID(run_id))
            .order_by(run_events.c.seq)
        )
        with self.connections.reading() as sql:
            return list(sql.scalars(rows))


@dataclass
class Findings:
    """The findings of all readers; `differences` must be empty."""

    events: int = 0
    bytes: int = 0
    readers: int = 0
    connections: int = 0
    cuts: int = 0
    inside_a_frame: int = 0
    inside_a_character: int = 0
    differences: list[str] = field(default_factory=list)


def script(turns: int = TURNS) -> str:
    """Build the message of a run with some 60 events per turn: thoughts, text of all kinds,
    tools.
    """
    steps: list[dict[str, Any]] = []
    for turn in range(turns):
        shift = turn % len(WORDS)
        words = "".join((*WORDS[shift:], *WORDS[:shift]))
        steps += [
            {"think": f"{turn}: {words}"},
            {"say": words, "delay_ms": 45},
            {"tools": [_sum(f"{turn}+{number}") for number in range(20)]},
        ]
    return json.dumps({"script": [*steps, {"say": "".join(WORDS)}]})


def check(
    service: Service, run_id: str, *, cuts: int, seed: int, between: Callable[[], object]
) -> Findings:
    """Cut the stream of an ended run at `cuts` random places; half of them after `between`."""
    stored = service.stored(run_id)
    whole = Reader(service, run_id, random.Random(seed))
    size = whole.read_to_end()
    findings = Findings(events=len(stored), bytes=size)
    _judge(whole, stored, findings)
    for numbers in (range(cuts // 2), range(cuts // 2, cuts)):
        readers = [Reader(service, run_id, random.Random(f"{seed}:{n}")) for n in numbers]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda reader: reader.read_in_pieces(size), readers))
        for reader in readers:
            _judge(reader, stored, findings)
        if numbers.start == 0:
            between()
    return findings


def check_live(
    service: Service,
    run_id: str,
    *,
    readers: int,
    seed: int,
    between: Callable[[], object],
    after: int,
) -> Findings:
    """Check a run during its execution; `between` is called after `after` events of it."""
    found = [Reader(service, run_id, random.Random(f"{seed}:live:{n}")) for n in range(readers)]
    with ThreadPoolExecutor(max(1, readers)) as pool:
        ended = [pool.submit(reader.read_live) for reader in found]
        while found and found[0].frames < after and not ended[0].done():
            time.sleep(0.05)
        between()
        for one in ended:
            one.result()
    stored = service.stored(run_id)
    findings = Findings(events=len(stored))
    for reader in found:
        _judge(reader, stored, findings)
    return findings


class Reader:
    """A client of one run, over as many connections as it takes."""

    def __init__(self, service: Service, run_id: str, rng: random.Random) -> None:
        self.lines: list[str] = []
        self.wrong: list[str] = []
        self.connections = self.cuts = self.inside_a_frame = self.inside_a_character = 0
        self._service = service
        self._run_id = run_id
        self._rng = rng

    @property
    def frames(self) -> int:
        return len(self.lines)

    def read_to_end(self) -> int:
        """Read everything on one connection; returns the length of the body."""
        return self._piece(sys.maxsize, named=False)[0]

    def read_in_pieces(self, size: int) -> None:
        """Cut at any of the bytes, then once or more in what is left, then to the end."""
        left = size
        for _ in range(self._rng.choice((1, 2, 2, 3))):
            taken, ended = self._piece(self._rng.randint(0, left), named=self._rng.random() < 0.25)
            if ended:
                break
            left = max(0, left - taken)
        self._piece(sys.maxsize, named=self._rng.random() < 0.25)

    def read_live(self) -> None:
        """Cut soon, again and again, until the last event is there."""
        ended = False
        while not ended:
            limit = self._rng.randint(0, LIVE_BYTES)
            _, ended = self._piece(limit, named=self._rng.random() < 0.25)

    def _piece(self, limit: int, *, named: bool) -> tuple[int, bool]:
        """Read at most `limit` bytes of a body; returns how many, and whether it had ended."""
        self.connections += 1
        url = urlsplit(self._rng.choice(self._service.urls))
        request = Request(
            "GET",
            "/v1/runs/{id}/events",
            self._run_id,
            query="?named=true" if named else "",
            headers={"Last-Event-ID": str(self.frames)} if self.frames else {},
        )
        assert url.hostname is not None and url.port is not None
        address = (url.hostname, url.port)
        with socket.create_connection(address, SILENCE_SECONDS) as connection:
            connection.sendall(request.encoded(url.netloc, self._service.token))
            body, ended = _body(connection, limit)
            if not ended and self._rng.random() < 0.5:
                # With a reset, not with a farewell.
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._take(Frames().feed(body), named)
        if not ended:
            self.cuts += 1
            self.inside_a_frame += bool(body) and not body.endswith(b"\n\n")
            self.inside_a_character += _ends_inside_a_character(body)
        return len(body), ended

    def _take(self, frames: Sequence[Frame], named: bool) -> None:
        for frame in frames:
            if frame.id != self.frames + 1:
                how = "named" if named else "plain"
                self.wrong.append(f"{how}: id {frame.id} after {self.frames}")
            self.lines.append(frame.line)


def _body(connection: socket.socket, limit: int) -> tuple[bytes, bool]:
    """Return at most `limit` bytes of the response's body, and whether there are no more."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(READ_BYTES)
        if not data:
            raise BrokenAnswer(f"it ended inside the head: {received!r}")
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1]
    if status == b"204":
        return b"", True
    if status != b"200":
        raise BrokenAnswer(f"{head!r} {rest!r}")
    chunks = Chunks()
    body = bytearray(chunks.feed(rest))
    while len(body) < limit and not chunks.ended:
        data = connection.recv(READ_BYTES)
        if not data:
            raise BrokenAnswer("it ended inside the body")
        body += chunks.feed(data)
    return bytes(body[:limit]), chunks.ended and len(body) <= limit


def _ends_inside_a_character(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return True
    return False


def _judge(reader: Reader, stored: Sequence[str], findings: Findings) -> None:
    findings.readers += 1
    findings.connections += reader.connections
    findings.cuts += reader.cuts
    findings.inside_a_frame += reader.inside_a_frame
    findings.inside_a_character += reader.inside_a_character
    findings.differences += reader.wrong
    if reader.lines != list(stored):
        pairs = enumerate(zip(reader.lines, stored, strict=False), 1)
        unlike = [number for number, (line, row) in pairs if line != row]
        where = f"first at {unlike[0]}" if unlike else f"{reader.frames} of {len(stored)} lines"
        findings.differences.append(f"reader {findings.readers}: {where}")


def _sum(expression: str) -> dict[str, Any]:
    return {"tool": "calculator", "args": {"expression": expression}}


async def start_run(service: Service, message: str) -> str:
    """Start a run with this message in a thread of its own, and return its id."""
    access = Access(service.urls, Journal(), Tally())
    client = Client(access, service.token, random.Random(0))
    made = await client.until(Request("POST", "/v1/threads", body={}))
    thread_id = str(made.body["id"])
    path = "/v1/threads/{id}/messages"
    await client.until(Request("POST", path, thread_id, {"content": message}))
    chosen = {"route_id": "scripted"}
    run = await client.until(Request("POST", "/v1/threads/{id}/runs", thread_id, chosen))
    return str(run.body["run_id"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos.cut_points", description=__doc__)
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--live", type=int, default=40, help="readers while the run is executed")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="arkloop-cuts-") as folder:
        with Stack(Path(folder), Journal(), workers=1) as stack:
            service = Service(stack.urls, stack.api_key(), stack.connect())
            redis = stack.redis_client()
            run_id = asyncio.run(start_run(service, script()))
            live = check_live(
                service,
                run_id,
                readers=args.live,
                seed=args.seed,
                between=redis.flushall,
                after=TURNS * 25,
            )
            _show("live", live)
            run_id = asyncio.run(start_run(service, script()))
            Reader(service, run_id, random.Random(args.seed)).read_to_end()
            ended = check(service, run_id, cuts=args.cuts, seed=args.seed, between=redis.flushall)
            _show("ended", ended)
    print(f"seed {args.seed}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    return 1 if live.differences or ended.differences else 0


def _show(name: str, findings: Findings) -> None:
    print(
        f"{name:6} {findings.events} events, {findings.readers} readers,"
        f" {findings.connections} connections, {findings.cuts} cuts:"
        f" {findings.inside_a_frame} inside a frame,"
        f" {findings.inside_a_character} inside a character;"
        f" {len(findings.differences)} differences",
        flush=True,
    )
    for difference in findings.differences[:10]:
        print(f"    {difference}")


if __name__ == "__main__":
    sys.exit(main())
