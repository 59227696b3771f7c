"""Notices that Postgres went back in time: its files were replaced by an older copy of them.

Such a copy has the identity of the original (`shared/storage/epoch.py`), and so Redis would show
events that Postgres does not have any more. But the position in Postgres' log only ever grows:
processes leave the furthest that they have seen in Redis, beside the streams that it is about.
"""

import logging
from uuid import UUID

from redis import RedisError
from sqlalchemy import Connection, func, true, update

from arkloop.shared.outage_log import OutageLog
from arkloop.shared.storage import epoch
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import POSITION_TTL_SECONDS
from arkloop.shared.storage.tables.storage import installation

log = logging.getLogger(__name__)
_records = OutageLog(log, "recording the WAL position")


def check(connections: Connections) -> None:
    """Begin a new epoch if Postgres went back; use the names of the present one in any case.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    keys = connections.keys
    if not keys.epoch:
        with connections.reading():
            pass  # the first connection tells the names
    if keys.epoch.endswith("."):  # Postgres hides its log: `arkloop rotate-epoch` is all there is
        return
    seen_in = keys.position()
    # Asked for before Postgres is: another process may leave a further one in between.
    furthest = _furthest(connections, seen_in)
    with connections.transaction() as tx:
        old, position = _read(connections, tx.sql)
        if keys.position() != seen_in:
            return
        if furthest is not None and position < furthest:
            log.warning(
                "Postgres went back in time (restored or failed over): starting a new"
                " epoch, ignoring what Redis has"
            )
            rotate(tx.sql, old)
            _read(connections, tx.sql)
            return
    try:
        connections.ask_redis(lambda redis: redis.set(seen_in, position, ex=POSITION_TTL_SECONDS))
    except RedisError as error:
        _records.failed("recording the WAL position failed: %s", error)
    else:
        _records.worked()


def rotate(sql: Connection, old: UUID | None = None) -> None:
    """Begin a new epoch, unless another one than `old` has begun already.

    Nothing that Redis has is read any more.
    """
    is_old = true() if old is None else installation.c.epoch == old
    sql.execute(update(installation).where(is_old).values(epoch=func.gen_random_uuid()))


def _furthest(connections: Connections, key: str) -> int | None:
    try:
        found = connections.ask_redis(lambda redis: redis.get(key))
    except RedisError:
        return None
    return int(found) if found is not None and found.isascii() and found.isdecimal() else None


def _read(connections: Connections, sql: Connection) -> tuple[UUID, int]:
    """Name all keys by the database's identity now; returns the row's epoch and the position."""
    identity, timeline, position = sql.exec_driver_sql(epoch.IDENTITY).one()
    epoch.name(connections.keys, identity, timeline)
    return UUID(identity.partition("/")[0]), int(position)
