"""The speed at which one run's events pass through a web process: live to many clients, and from
Postgres.

Beside them the same bytes taken from Redis, and from Postgres, by a program that does nothing else.
"""

import json
import time
from typing import Any
from uuid import UUID

import psycopg
import redis

from bench import stored_streams
from bench.figure import Figure, Limit
from bench.http_clients import Follower, Loop, Request, Target, call_all
from bench.service import Service

DELTAS = 20_000
SHORT_DELTAS = 1_000
CLIENTS = (1, 20)
REPLAYED_EVENTS = 100_000
SHORT_REPLAYED_EVENTS = 5_000
#: Characters of a delta: its payload has about a hundred bytes.
CHARACTERS = 10
_PIPELINED = 50
_READ_COUNT = 500
_SECONDS = 120.0


def long_run(*, short: bool = False) -> list[Figure]:
    """Measure one run of 20,000 deltas, without pause, to 1 and to 20 clients."""
    deltas = SHORT_DELTAS if short else DELTAS
    with Service(web=1, workers=1) as service:
        limit = _raw_redis(service.redis.url)
        return [_follow(service, deltas, clients, limit) for clients in CLIENTS]


def _follow(service: Service, deltas: int, clients: int, limit: float) -> Figure:
    loop = Loop()
    target = Target(service.urls[0], service.api_key)
    [(_, body, _)] = call_all(loop, [target], [("POST", "/v1/threads", {})], connections=1)
    thread = json.loads(body)["id"]
    message = {"content": json.dumps({"script": [{"count": deltas}]})}
    said: Request = ("POST", f"/v1/threads/{thread}/messages", message)
    started: Request = ("POST", f"/v1/threads/{thread}/runs", {})
    began = time.perf_counter()
    *_, (_, body, _) = call_all(loop, [target], [said, started], connections=1)
    run_id = json.loads(body)["run_id"]
    followers = [Follower(loop, target, run_id, keep=not one) for one in range(clients)]
    try:
        loop.until(lambda: all(one.end for one in followers), _SECONDS, "ends")
        seconds = time.perf_counter() - began
        assert not any(one.holes for one in followers)
        # Many deltas may come in one event; each has its number in its text.
        assert b"%d:" % (deltas - 1) in bytes(followers[0].text)
    finally:
        for one in followers:
            one.close()
    return Figure(
        name=f"one run of {deltas:,} deltas to {clients} client(s)",
        unit="deltas/s",
        numbers={"in sum": deltas * clients / seconds},
        count=followers[0].received * clients,
        at_least={"in sum": 100_000.0} if clients == CLIENTS[-1] else {},
        limit=Limit(name="XADD and XREAD, one Python process", of="in sum", value=limit),
        note="from the POST of the run; 1 web process, 1 worker",
    )


def _raw_redis(url: str) -> float:
    """Return the entries per second that one program writes, 50 at a time, and reads, 500 at a
    time.
    """
    client = redis.Redis.from_url(url)
    payload = b"x" * 100
    began = time.perf_counter()
    for start in range(1, DELTAS, _PIPELINED):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, start + _PIPELINED):
            pipeline.xadd("raw", {"type": "message.delta", "payload": payload}, id=f"{number}-0")
        pipeline.execute()
    last, seen = "0-0", 0
    while answer := _read(client, last):
        entries = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
        last, seen = entries[-1][0], seen + len(entries)
    seconds = time.perf_counter() - began
    assert seen == DELTAS
    client.delete("raw")
    client.close()
    return DELTAS / seconds


def _read(client: redis.Redis, last: str) -> Any:
    """Read lists of (name, entries) by version 2 of the protocol, a mapping by version 3."""
    return client.xread({"raw": last}, count=_READ_COUNT)


def replay(*, short: bool = False) -> list[Figure]:
    """Measure an ended run of 100,000 events, from Postgres to one client."""
    events = SHORT_REPLAYED_EVENTS if short else REPLAYED_EVENTS
    with Service(web=1, workers=0) as service:
        connections = service.connect()
        run_id = stored_streams.finished(connections, service.owner, events, CHARACTERS)
        loop = Loop()
        target = Target(service.urls[0], service.api_key)
        call_all(loop, [target], [("GET", "/v1/me", None)] * 20)
        limit = _raw_postgres(service.postgres.url.replace("+psycopg", ""), run_id)
        times: list[float] = []
        for _ in range(3):
            follower = Follower(loop, target, str(run_id))
            loop.until(lambda one=follower: not one.is_open or one.end, _SECONDS, "the replay")  # type: ignore[misc]  # its default has no type
            assert (events, 0) == (follower.received, follower.holes)
            assert follower.ended_at is not None
            times.append(follower.ended_at - follower.asked_at)
            follower.close()
    rates = sorted(events / seconds for seconds in times)
    return [
        Figure(
            name=f"replay of {events:,} events from Postgres to one client",
            unit="events/s",
            numbers={"median": rates[1], "worst": rates[0]},
            count=events,
            at_least={"median": 50_000.0},
            limit=Limit(name="one SELECT by psycopg", of="median", value=limit),
        )
    ]


def _raw_postgres(url: str, run_id: UUID) -> float:
    """Return the rows per second of one SELECT of all of them; the faster of two."""
    rates: list[float] = []
    with psycopg.connect(url) as sql:
        for _ in range(2):
            began = time.perf_counter()
            rows = sql.execute(
                "SELECT seq, type, payload FROM run_events WHERE run_id = %s ORDER BY seq", [run_id]
            ).fetchall()
            rates.append(len(rows) / (time.perf_counter() - began))
    return max(rates)
