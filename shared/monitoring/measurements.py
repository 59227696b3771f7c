"""Measurements of the whole installation: its queue, its runs by state, its workers, its webhooks.

Postgres is asked for them at most once in an interval, by the process that needs them first,
however many processes there are: the result is a row that all of them read.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arkloop.shared.runs.live_workers import SILENT_HEARTBEATS
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.sql_files import statement

INTERVAL_SECONDS = 10.0
_MEASURE = statement(__package__, "measure")
_READ = "SELECT taken_at, data FROM measurements"


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of measuring, and its time; `data` as `sql/measure.sql` builds it."""

    at: datetime
    data: dict[str, Any]


def current(connections: Connections) -> Measured:
    """Return measurements that are not older than the interval, and measure if there are none.

    Raises:
        Unavailable
    """
    settings = connections.settings
    values = {
        "interval": INTERVAL_SECONDS,
        "silence": settings.heartbeat_seconds * SILENT_HEARTBEATS,
        "lease": settings.lease_seconds,
    }
    with connections.reading() as sql:
        sql.exec_driver_sql(_MEASURE, values)
        row = sql.exec_driver_sql(_READ).one()
    return Measured(row.taken_at, row.data)
