"""The round trips of a program that does nothing else: a durable INSERT, XADD, a waiting reader."""

import threading
import time
from typing import Any, Self

import psycopg
import redis

_TABLE = "CREATE TABLE IF NOT EXISTS bench_round_trips (id bigserial PRIMARY KEY, payload text)"
_STREAM = "bench:round-trips"
_PAYLOAD = "x" * 100


class RoundTrips:
    """A connection to Postgres, one to write to Redis, and a reader that waits in XREAD."""

    def __init__(self, postgres_url: str, redis_url: str) -> None:
        self.insert_seconds: list[float] = []
        self.event_seconds: list[float] = []  # the INSERT, then XADD, until the reader has it
        self._sql = psycopg.connect(postgres_url, autocommit=True)
        self._sql.execute(_TABLE)
        self._redis = redis.Redis.from_url(redis_url)
        self._reader_redis = redis.Redis.from_url(redis_url)
        self._is_over = False
        self._read_at = 0.0
        self._has_read = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._redis.xadd(_STREAM, {"payload": _PAYLOAD})
        self._reader.join()
        self._redis.delete(_STREAM)
        self._redis.close()
        self._reader_redis.close()
        self._sql.close()

    def once(self) -> None:
        """Measure each time once more."""
        self._has_read.clear()
        began = time.perf_counter()
        self._sql.execute("INSERT INTO bench_round_trips (payload) VALUES (%s)", [_PAYLOAD])
        self.insert_seconds.append(time.perf_counter() - began)
        self._redis.xadd(_STREAM, {"payload": _PAYLOAD})
        if not self._has_read.wait(10):
            raise TimeoutError("the reader was not woken")
        self.event_seconds.append(self._read_at - began)

    def _read(self) -> None:
        last: Any = "0-0"
        while not self._is_over:
            answer: Any = self._reader_redis.xread({_STREAM: last}, count=1, block=60_000)
            self._read_at = time.perf_counter()
            # Lists of (name, entries) by version 2 of the protocol, a mapping by version 3.
            entries = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
            last = entries[-1][0]
            self._has_read.set()
