"""Partitions of events for the past, as a database has them that had partitions all the time."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from arkloop.shared.events import partitions
from arkloop.shared.events.partitions import Partition


def make(sql: psycopg.Connection[Any], *, days: int, width: int = 15) -> list[Partition]:
    """Put partitions of `width` days in the place of the first one, which is empty.

    They begin `days` ago; the last one ends where the first one did. Returns those that have an
    end, the oldest first.
    """
    first = next(one for one in _read(sql) if one.lower is None)
    sql.execute("DROP TABLE run_events_first")
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = today - timedelta(days=days)
    while begin < first.end:
        end = min(begin + timedelta(days=width), first.end)
        bounds = [partitions.bound(begin), partitions.bound(end)]
        sql.execute("SELECT add_run_events_partition(%s, %s)", bounds)
        begin = end
    return _read(sql)


def fill(sql: psycopg.Connection[Any], made: Sequence[Partition]) -> None:
    """Store events of runs that never were in each partition, and in the default one."""
    for prefix in (*(str(one.lower)[:8] for one in made), "ffffffff"):
        sql.execute(
            "INSERT INTO run_events"
            " SELECT (%s || substr(gen_random_uuid()::text, 9))::uuid, seq, 'message.delta', '{}'"
            " FROM generate_series(1, 500), generate_series(1, 20) AS seq",
            [prefix],
        )


def _read(sql: psycopg.Connection[Any]) -> list[Partition]:
    return [Partition(*row) for row in sql.execute(partitions.READ)]
