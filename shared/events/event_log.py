"""The event log: appended in Postgres, copied to a Redis Stream.

The stream's entry id is the event's seq, so a cursor is a stream position and
Redis refuses repeats. An append requires holding the run: by its row lock here, or
by its fence in `worker/process/event_writer.py`.
"""

import itertools
import json
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID

from redis.exceptions import ReadOnlyError, ResponseError
from sqlalchemy import Connection, ScalarSelect, func, select, text

from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.turns import still_open
from arkloop.shared.events.types import (
    STREAMED_TYPES,
    Event,
    MessageCompleted,
    MessageDelta,
    MessageReset,
    RunResumed,
    RunWaitingForInput,
    ToolCallRequested,
)
from arkloop.shared.outage_log import OutageLog
from arkloop.shared.storage import keys
from arkloop.shared.storage.arrays import ByteArray, TextArray, plain_array
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.redis_commands import Commands, form, word
from arkloop.shared.storage.tables.events import run_events

log = logging.getLogger(__name__)
_copies = OutageLog(log, "copying events to Redis")

Batch = Mapping[UUID, Sequence[StoredEvent]]

# One statement and not many rows for one: the driver would send those as a pipeline, and while
# it waits for the rest of one Postgres runs no timer; a process that is frozen there would keep
# the run's lock. What is there already was stored in a commit whose answer got lost.
_STORE = """
INSERT INTO run_events (run_id, seq, type, payload, prompts)
SELECT unnest((SELECT %(run_ids)s::uuid[])) AS run_id,
    unnest((SELECT %(seqs)s::bigint[])) AS seq,
    unnest((SELECT %(types)s::text[])) AS type,
    unnest((SELECT %(payloads)s::text[])) AS payload,
    unnest((SELECT %(prompts)s::bytea[])) AS prompts
ON CONFLICT DO NOTHING
"""

_SUBJECT = text("SELECT org_id, trace_id FROM runs WHERE id = :run_id")

#: Older entries of a very long run, or of one with large events, are read from Postgres.
STREAM_MAX_LENGTH = 10_000
STREAM_MAX_BYTES = 4 * 1024 * 1024
#: Longer events are read from Postgres, too: a reader asks Redis for a number of entries, whatever
#: their length, and holds all of them.
STREAM_MAX_CHARACTERS = 16_384
#: Events that are shorter together travel with the notification of them: a follower that has all
#: before them need not ask Redis.
NEWS_MAX_CHARACTERS = 4_096
#: One of this many events renews the time to live of its stream.
EXPIRE_EVERY = 100
#: All of them do in this time after Redis was silent: it may have lost the streams.
AFTER_OUTAGE_SECONDS = 3600.0

_XADD = form("XADD", None, "MAXLEN", "~", None, None, "type", None, "payload", None)
_DEL, _EXPIRE, _PUBLISH = form("DEL", None), form("EXPIRE", None, None), form("PUBLISH", None, None)
_LIVE_STREAM_TTL = word(keys.LIVE_STREAM_TTL_SECONDS)


def last_seq(sql: Connection, run_id: UUID) -> int:
    """Return the number of the run's last event, 0 if it has none."""
    return sql.scalar(select(func.max(run_events.c.seq)).where(run_events.c.run_id == run_id)) or 0


def last_seqs(sql: Connection, run_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the number of the last event of each run that has one."""
    rows = sql.execute(
        select(run_events.c.run_id, func.max(run_events.c.seq))
        .where(run_events.c.run_id.in_(run_ids))
        .group_by(run_events.c.run_id)
    )
    return {row.run_id: row[1] for row in rows}


def is_cut_off(sql: Connection, run_id: UUID, first: int) -> bool:
    """Return whether the event before `first`, which was committed, is gone; log it if so.

    Workers number from memory. After a failover to a replica that lagged, Postgres has less than
    it has confirmed, and what is written next would leave a hole.
    """
    before = select(run_events.c.seq).where(
        run_events.c.run_id == run_id, run_events.c.seq == first - 1
    )
    if first == 1 or sql.scalar(before) is not None:
        return False
    report_loss(run_id, first, subject(sql, run_id))
    return True


def report_loss(run_id: UUID, first: int, extra: Mapping[str, Any]) -> None:
    """Log that committed events before `first` are gone; `extra` are the line's other fields."""
    log.error("Postgres lost committed events of run %s before seq %d", run_id, first, extra=extra)


def subject(sql: Connection, run_id: UUID) -> dict[str, str]:
    """Return what a log line says of the run that it is about: its id, and its org and trace."""
    row = sql.execute(_SUBJECT, {"run_id": run_id}).one_or_none()
    fields = {} if row is None else {"org_id": str(row.org_id), "trace_id": row.trace_id}
    return {"run_id": str(run_id), **fields}


def number(tx: Transaction, run_id: UUID, events: Sequence[Event]) -> list[StoredEvent]:
    """Number and encode events that follow the run's last one.

    The caller's transaction holds the run's row lock, has raised its fence,
    and knows that no worker writes to the run.
    """
    # Numbered under the run's row lock, not from a sequence: a sequence hands out
    # 7 before 6 has committed, and a reader after 5 would skip 6 for good.
    last, now = tx.sql.execute(
        select(func.coalesce(func.max(run_events.c.seq), 0), func.clock_timestamp()).where(
            run_events.c.run_id == run_id
        )
    ).one()
    return [encode(last + i, event, now) for i, event in enumerate(events, 1)]


def store(tx: Transaction, batch: Batch) -> None:
    """Store events that are numbered already and, after the commit, publish them."""
    tx.sql.exec_driver_sql(_STORE, columns(batch.items()))
    tx.after_commit.append(Publish(batch))


def columns(
    batch: Iterable[tuple[UUID, Sequence[StoredEvent]]],
) -> dict[str, str | TextArray | ByteArray]:
    """Return the events as five arrays, for `unnest`.

    The driver's conversion of lists takes several times as long as these.
    """
    run_ids: list[str] = []
    rows: list[StoredEvent] = []
    for run_id, events in batch:
        run_ids += [str(run_id)] * len(events)
        rows += events
    return {
        "run_ids": plain_array(run_ids),
        "seqs": plain_array(event.seq for event in rows),
        "types": plain_array(event.type for event in rows),
        "payloads": TextArray(event.payload for event in rows),
        "prompts": ByteArray(event.prompts for event in rows),
    }


def publish(
    connections: Connections, *batches: Batch, started: Iterable[tuple[UUID, int]] = ()
) -> None:
    """Copy committed events to their streams and tell the followers, in one round trip.

    `started` are the threads and positions of runs that start with them.

    Raises:
        redis.exceptions.RedisError: Redis is out of reach. Followers then read Postgres.
    """
    refused = [
        answer
        for answer in connections.ask_redis(
            lambda redis: _publish(redis, connections, batches, started)
        )
        # An id that is already there: published twice, which is harmless.
        if isinstance(answer, ResponseError) and "equal or smaller" not in str(answer)
    ]
    if refused:
        line = "%d events not copied to Redis: %s"
        _copies.failed(line, len(refused), refused[0])
        if isinstance(refused[0], ReadOnlyError):
            connections.disconnect_redis()
    else:
        _copies.worked()


@dataclass(frozen=True, slots=True)
class Publish:
    """Committed events of some runs, for their streams and followers.

    `started` are the positions of those that start, by their threads. With `can_wait`, other
    greenlets run once before it is sent.
    """

    kind: ClassVar[str] = "publish"
    batch: Batch
    started: Mapping[UUID, int] = field(default_factory=dict)
    can_wait: bool = False

    @property
    def subject(self) -> object:
        """Return the ids of the runs."""
        return ",".join(map(str, self.batch))

    @staticmethod
    def send(connections: Connections, group: "Sequence[Publish]") -> None:
        """Copy the events of all in one round trip."""
        if group[0].can_wait:
            time.sleep(0)
        started = [item for one in group for item in one.started.items()]
        publish(connections, *(one.batch for one in group), started=started)


def _publish(
    redis: Any,
    connections: Connections,
    batches: Sequence[Batch],
    started: Iterable[tuple[UUID, int]],
) -> list[Any]:
    commands = Commands()
    # A stream of which Redis has lost the beginning is a new one, without a time to live.
    has_lost = connections.redis_outage.was_within(AFTER_OUTAGE_SECONDS)
    for run_id, events in itertools.chain.from_iterable(batch.items() for batch in batches):
        stream = word(connections.keys.events(run_id))
        renew = has_lost
        for event in events:
            renew = renew or event.seq % EXPIRE_EVERY == 1
            if event.type == RunResumed.type:
                # It may have events that Postgres has lost, under numbers that are used again.
                commands.add(_DEL, stream)
                renew = True
            if len(event.payload) > STREAM_MAX_CHARACTERS:
                continue
            commands.add(
                *(_XADD, stream, word(_max_length(event)), word(f"{event.seq}-0")),
                *(word(event.type), word(event.payload)),
            )
        if events[-1].is_terminal:
            commands.add(_EXPIRE, stream, word(connections.settings.stream_ttl_seconds))
        elif renew:
            commands.add(_EXPIRE, stream, _LIVE_STREAM_TTL)
        channel = word(connections.keys.news(run_id))
        if (news := news_of(events)) is not None:
            commands.add(_PUBLISH, channel, word(news))
        # For followers that are further behind, and processes of the last release, which know no
        # other form.
        commands.add(_PUBLISH, channel, word(events[-1].seq))
    for thread_id, position in started:
        commands.add(_PUBLISH, word(connections.keys.runs(thread_id)), word(position))
    return commands.send(redis)


def news_of(events: Sequence[StoredEvent]) -> str | None:
    """Encode the events of a run for its followers: their first and last number, then a payload in
    each line. None if they are too long.
    """
    if sum(len(event.payload) for event in events) > NEWS_MAX_CHARACTERS:
        return None
    payloads = "\n".join(event.payload for event in events)
    return f"{events[0].seq} {events[-1].seq}\n{payloads}"


def _max_length(event: StoredEvent) -> int:
    """Compute how many entries a stream may keep if all are as large as this one.

    Redis cannot trim a stream to a number of bytes, and no process has to remember what is in it.
    """
    return max(1, min(STREAM_MAX_LENGTH, STREAM_MAX_BYTES // event.size))


def read_table(
    sql: Connection, run_id: UUID, after_seq: int, limit: int | None = None
) -> list[StoredEvent]:
    """Read the stored events with seq > `after_seq`, in order, at most `limit`."""
    rows = sql.execute(
        select(run_events.c.seq, run_events.c.type, run_events.c.payload)
        .where(run_events.c.run_id == run_id, run_events.c.seq > after_seq)
        .order_by(run_events.c.seq)
        .limit(limit)
    )
    return [StoredEvent(*row) for row in rows]


def waits(sql: Connection, run_id: UUID) -> tuple[list[StoredEvent], int]:
    """Return the run's events that ask for input, in order, and the number of its last event.

    Only the last event can be one that is still open.
    """
    rows = sql.execute(
        select(run_events.c.seq, run_events.c.type, run_events.c.payload)
        .where(run_events.c.run_id == run_id, run_events.c.type == RunWaitingForInput.type)
        .order_by(run_events.c.seq)
    )
    found = [StoredEvent(*row) for row in rows]
    return found, last_seq(sql, run_id)


def turn_calls(sql: Connection, run_id: UUID) -> list[dict[str, Any]]:
    """Return the `data` of the calls of the run's last finished model turn, in order."""
    rows = sql.scalars(
        select(run_events.c.payload)
        .where(
            run_events.c.run_id == run_id,
            run_events.c.seq > _last_turn(run_id),
            run_events.c.type == ToolCallRequested.type,
        )
        .order_by(run_events.c.seq)
    )
    return [data_of(payload) for payload in rows]


def call_ids(sql: Connection, run_id: UUID, seqs: Collection[int]) -> dict[int, str]:
    """Return the ids of the calls that the run makes with these events, by the events' numbers."""
    rows = sql.execute(
        select(run_events.c.seq, run_events.c.payload).where(
            run_events.c.run_id == run_id,
            run_events.c.seq.in_(seqs),
            run_events.c.type == ToolCallRequested.type,
        )
    )
    return {row.seq: data_of(row.payload)["tool_call_id"] for row in rows}


def data_of(payload: str) -> dict[str, Any]:
    """Decode the `data` of a stored event."""
    data: dict[str, Any] = json.loads(payload)["data"]
    return data


def open_events(sql: Connection, run_id: UUID) -> list[StoredEvent]:
    """Return what was streamed since the last finished model turn and is not void, in order."""
    rows = sql.execute(
        select(run_events.c.seq, run_events.c.type, run_events.c.payload)
        .where(
            run_events.c.run_id == run_id,
            run_events.c.seq > _last_turn(run_id),
            run_events.c.type.in_((*STREAMED_TYPES, MessageReset.type)),
        )
        .order_by(run_events.c.seq)
    )
    return still_open(StoredEvent(*row) for row in rows)


def _last_turn(run_id: UUID) -> ScalarSelect[int]:
    """Return the number of the event that ended the run's last model turn, 0 without one."""
    return (
        select(func.coalesce(func.max(run_events.c.seq), 0))
        .where(run_events.c.run_id == run_id, run_events.c.type == MessageCompleted.type)
        .scalar_subquery()
    )


def text_of(streamed: Iterable[StoredEvent]) -> str:
    """Join the text of these deltas; empty for none."""
    return output_of(event for event in streamed if event.type == MessageDelta.type)


def output_of(streamed: Iterable[StoredEvent]) -> str:
    """Join all that the model has streamed: text, reasoning and arguments of calls."""
    data = (data_of(event.payload) for event in streamed)
    return "".join(piece.get("content") or piece.get("arguments_delta", "") for piece in data)
