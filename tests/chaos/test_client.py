"""The clients of a chaos run, against a server that does everything wrong that a server can."""

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.clients.client import Access, Client, GaveUp, Request, Tally
from chaos.clients.follower import Follower
from chaos.clients.load import Load
from chaos.journal import Entry, Journal
from chaos.verdict.checker import check
from tests.waiting import eventually

RESET, HANG = b"reset", b"hang"


class BadServer:
    """It treats one connection after the other as `behaviours` say: bytes to send, then the end.

    `RESET` at the end cuts the connection, `HANG` keeps it open and silent. The last one is
    repeated.
    """

    def __init__(self, *behaviours: Sequence[bytes]) -> None:
        self.requests: list[str] = []
        self.url = ""
        self._behaviours = behaviours
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "BadServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behaviour = self._behaviours[min(len(self.requests), len(self._behaviours) - 1)]
        self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        for part in behaviour:
            if part == RESET:
                writer.transport.abort()
            elif part == HANG:
                await reader.read()
            else:
                writer.write(part)
                await writer.drain()
        writer.close()


def answer(status: int, body: bytes, headers: str = "") -> bytes:
    """Build a whole response."""
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def error(status: int, code: str, headers: str = "") -> bytes:
    """Build an error of the service."""
    return answer(status, b'{"code":"%s"}' % code.encode(), headers)


def stream(*bodies: bytes) -> bytes:
    """Build the beginning of a stream, without its end."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body), body) for body in bodies)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


def frame(seq: int, kind: str = "message.delta") -> bytes:
    return f'data: {{"seq":{seq},"type":"{kind}","data":{{}}}}\nid: {seq}\n\n'.encode()


END = b"0\r\n\r\n"


def access(*urls: str, silence: float = 3) -> Access:
    return Access(urls, Journal(), Tally(), timeout=3, silence=silence, patience=100)


def entries(of: Access, kind: str) -> list[Entry]:
    return [entry for entry in of.journal.entries if entry["kind"] == kind]


def test_a_create_is_repeated_with_its_key_until_it_is_answered() -> None:
    """Through resets, hangs, halves of answers and 503s goes one Idempotency-Key."""
    created = answer(201, b'{"run_id":"1"}')
    behaviours = [
        [RESET],
        [HANG],
        [created[:-3]],
        [b"nonsense\r\n\r\n"],
        [error(503, "service.unavailable", "Retry-After: 2\r\n")],
        [error(409, "idempotency.in_progress")],
        [created],
    ]

    async def play() -> None:
        async with BadServer(*behaviours) as server:
            given = access(server.url)
            request = Request("POST", "/v1/threads/{id}/runs", "t", {}, key="k-1")
            got = await Client(given, "token", random.Random(1)).until(request)
            assert (201, {"run_id": "1"}) == (got.status, got.body)
            keys = [re.findall("Idempotency-Key: (.*)\r", sent) for sent in server.requests]
            assert [["k-1"]] * len(behaviours) == keys
        seen = [(e["status"], e["code"], e["retry_after"]) for e in entries(given, "answer")]
        assert [
            (503, "service.unavailable", "2"),
            (409, "idempotency.in_progress", None),
            (201, "", None),
        ] == seen
        assert 4 == given.tally.no_answers == len(entries(given, "no_answer"))

    asyncio.run(play())


def test_a_client_goes_to_the_other_server() -> None:
    """A server that is away costs one try."""

    async def play() -> None:
        async with BadServer([answer(200, b"{}")]) as server:
            given = access("http://127.0.0.1:1", server.url)
            for seed in range(6):
                got = await Client(given, "t", random.Random(seed)).until(Request("GET", "/x"))
                assert 200 == got.status
            assert 0 < len(entries(given, "no_answer")) <= 6

    asyncio.run(play())


def test_patience_ends() -> None:
    """A request that is never answered for good is given up, in words that tell why."""

    async def play() -> None:
        async with BadServer([error(503, "service.unavailable")]) as server:
            client = Client(access(server.url), "t", random.Random(1))
            with pytest.raises(GaveUp, match="GET /x: 503 service.unavailable"):
                await client.until(Request("GET", "/x"), patience=0.2)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("status", "code", "patience"),
    [(403, "auth.forbidden", 20.0), (503, "service.unavailable", 0.0)],
    ids=["refused", "given up"],
)
def test_what_a_load_is_refused_reaches_the_verdict(
    status: int, code: str, patience: float, tmp_path: Path
) -> None:
    """A refusal that no plan expects, and a client that gives up, are violations."""

    async def play() -> None:
        async with BadServer([error(status, code)]) as server:
            load = Load(
                [server.url],
                "token",
                Journal(),
                seed=1,
                sink=tmp_path / "sink",
                runs=1,
                patience=patience,
            )
            await asyncio.to_thread(load.run)
        found = [v.what for v in check(load.journal.entries) if v.invariant == "A3"]
        assert [f"run 0: POST /v1/threads: {status} {code}"] == found

    asyncio.run(play())


def test_a_follower_misses_and_repeats_nothing() -> None:
    """It resumes after its last whole frame whatever ends a stream, up to the terminal event."""
    behaviours = [
        [stream(b": ok\n", frame(1) + frame(2)), HANG],
        [stream(b": ok\n" + frame(3)[:20]), RESET],
        [error(503, "service.unavailable")],
        [stream(b": ok\n" + frame(3) + frame(4)[:-1]), END],
        [stream(b": ok\n" + frame(4)), b"zz\r\n"],
        [stream(b": ok\n: ping\n", frame(5, "run.completed")), END],
    ]

    async def play() -> None:
        async with BadServer(*behaviours) as server:
            given = access(server.url)
            client = Client(given, "token", random.Random(1))
            await Follower(client, "r", random.Random(2), hangs_up=False).follow()
            cursors = [
                max([0, *map(int, re.findall(r"(?:after_seq=|Last-Event-ID: )(\d+)", sent))])
                for sent in server.requests
            ]
            assert [0, 2, 2, 2, 3, 4] == cursors
        assert [1, 2, 3, 4, 5] == [entry["id"] for entry in entries(given, "event")]
        ends = [entry["why"] for entry in entries(given, "stream_end")]
        assert ["lost", "lost", "ended", "lost", "ended"] == ends
        assert 5 == given.tally.reconnects
        assert 0 == given.tally.open_streams

    asyncio.run(play())


def test_a_follower_cuts_its_streams_itself() -> None:
    """Many followers of one stream hang up in the middle of it, and see all of it all the same."""
    frames = [*map(frame, range(1, 40)), frame(40, "run.completed")]

    async def play() -> None:
        for seed in range(12):
            rng = random.Random(seed)
            # The server of a run that has ended: everything after the cursor, at once.
            async with Replaying(frames) as server:
                given = access(server.url, silence=60)
                await Follower(Client(given, "t", rng), "r", rng).follow()
            ids = [entry["id"] for entry in entries(given, "event")]
            assert list(range(1, 41)) == ids
            cuts.extend(e["why"] for e in entries(given, "stream_end"))

    cuts: list[str] = []
    asyncio.run(play())
    assert {"cut", "ended"} == set(cuts)


class Replaying(BadServer):
    """It sends the frames after the cursor, and ends the stream."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        super().__init__([])
        self._frames = frames

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = (await reader.readuntil(b"\r\n\r\n")).decode()
        found = re.findall(r"(?:after_seq=|Last-Event-ID: )(\d+)", sent)
        cursor = max([0, *map(int, found)])
        writer.write(stream(b"".join(self._frames[cursor:])) + END)
        writer.close()


def test_a_follower_that_skips_events_is_found() -> None:
    """The streams of one follower are known as such: none begins after what it has seen."""
    given = access("http://127.0.0.1:1")
    frames = [*map(frame, range(1, 40)), frame(40, "run.completed")]

    async def play() -> None:
        async with Replaying(frames) as server:
            client = Client(replace(given, urls=[server.url]), "t", random.Random(1))
            await Follower(client, "r", random.Random(1), name="one").follow()

    asyncio.run(play())
    told = given.journal.entries
    opened = [entry for entry in told if entry["kind"] == "stream_open"]
    opened[-1]["after_seq"] = 39

    [found] = [v.what for v in check(told) if "asked for what is after 39" in v.what]

    assert found.startswith("one had ")


def test_a_load_that_meets_nobody_can_be_sent_home(tmp_path: Path) -> None:
    """`join` returns in time and says that it is not over; the last look says what is missing."""
    load = Load(["http://127.0.0.1:1"], "token", Journal(), seed=1, sink=tmp_path / "sink", runs=3)
    load.start()
    eventually(lambda: load.summary()["no_answers"] > 0)
    assert load.join(0.3) is False
    load.finish(deadline=0.1)
    assert 0 == load.accepted
