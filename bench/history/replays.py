"""The speed at which one run's events are replayed, by their number and that of other stored
events.
"""

import statistics
import time
from collections.abc import Sequence
from uuid import UUID

import psycopg

from bench import stored_streams
from bench.conversations import targets_of
from bench.figure import Figure, Limit
from bench.history.seeding import History
from bench.http_clients import Follower, Loop, call_all
from bench.service import Service

EVENTS = (1_000, 10_000, 100_000)
#: Characters of a delta: its payload has about a hundred bytes.
CHARACTERS = 10
ROUNDS = 5
#: Events a second, of the longest run.
TARGET_RATE = 50_000.0
_PATIENCE_SECONDS = 60.0
_SELECT = "SELECT seq, type, payload FROM run_events WHERE run_id = %s ORDER BY seq"


def measure(service: Service, written: History, events: Sequence[int] = EVENTS) -> list[Figure]:
    """Measure one client that reads each of these runs from its first event, again and again."""
    connections = service.connect()
    loop, targets = Loop(), targets_of(service)
    figures: list[Figure] = []
    for count in events:
        run_id = stored_streams.finished(connections, service.owner, count, CHARACTERS)
        call_all(loop, targets, [("GET", "/v1/me", None)] * 20)
        alone = _select_seconds(service, run_id)
        seconds = [_replay(loop, service, run_id, count) for _ in range(ROUNDS)]
        figures.append(
            Figure(
                name=f"replay of a run's events, {written.runs:,} runs stored",
                unit="events/s",
                numbers={
                    "median": count / statistics.median(seconds),
                    "worst": count / max(seconds),
                },
                count=ROUNDS,
                at_least={"median": TARGET_RATE} if count == EVENTS[-1] else {},
                limit=Limit(name="one SELECT by psycopg", of="median", value=count / alone),
                scale=("events of the run", float(count)),
            )
        )
    return figures


def _replay(loop: Loop, service: Service, run_id: UUID, count: int) -> float:
    """Return the seconds from the request to the last event, with nothing omitted."""
    [target] = targets_of(service)
    follower = Follower(loop, target, str(run_id))
    try:
        loop.until(lambda: follower.end or not follower.is_open, _PATIENCE_SECONDS, "the replay")
        assert (count, 0) == (follower.received, follower.holes)
        assert follower.ended_at is not None
        return follower.ended_at - follower.asked_at
    finally:
        follower.close()


def _select_seconds(service: Service, run_id: UUID) -> float:
    seconds: list[float] = []
    with psycopg.connect(service.postgres.url.replace("+psycopg", "", 1)) as sql:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            sql.execute(_SELECT, [run_id]).fetchall()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
