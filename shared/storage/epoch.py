"""The identity of the database and of its history: the first part of every name in Redis.

Two installations that share a Redis must not take each other's messages, and a restored backup or
a promoted standby writes other events under numbers that Redis has already. So names begin with
what differs then: the row of `installation`, with the transaction that wrote it (a dump that is
loaded writes it again), the database's own number, and the timeline of Postgres' log (a promotion
and a recovery to a point in time begin a new one). A copy of the files has all of that: see
`shared/storage/rewinds.py`. So may a second restore have what the first one began with, which is
why `arkloop rotate-epoch` is a step of every restore.

None of it needs a privilege. A server that hides its log (Aurora does) has no timeline here.

Timelines of one cluster only grow. A former primary that is started again after a failover accepts
writes as well, on the timeline that was left: its connections are refused.
"""

import hashlib
import logging
from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy import Connection, ScalarSelect, select

from arkloop.shared.outage_log import OutageLog
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.tables.storage import installation

log = logging.getLogger(__name__)
_refusals = OutageLog(log, "connecting to the primary of Postgres")

#: Columns: what identifies the installation, the timeline, the position in the log in bytes.
IDENTITY = """
SELECT i.epoch || '/' || i.xmin || '/' || d.oid, left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint
FROM installation i, pg_database d WHERE d.datname = current_database()
"""
_PARTS = """
SELECT i.epoch || '/' || i.xmin || '/' || d.oid, {timeline}, {cluster}
FROM installation i, pg_database d{control} WHERE d.datname = current_database()
"""
_TIMELINE = "left(pg_walfile_name(pg_current_wal_lsn()), 8)"
#: As `IDENTITY`, with the number of the cluster: a standby, and a copy of the files, have the same.
#: The later ones are for servers and roles that hide the cluster, or the log, too.
_IDENTITIES = (
    _PARTS.format(
        timeline=_TIMELINE,
        cluster="c.system_identifier::text",
        control=", pg_control_system() c",
    ),
    _PARTS.format(timeline=_TIMELINE, cluster="''", control=""),
    _PARTS.format(timeline="''", cluster="''", control=""),
)

# The last one: earlier releases of Postgres may read the number of the cluster while it is written.
_HIDES_PARTS = (errors.FeatureNotSupported, errors.InsufficientPrivilege, errors.InternalError_)
#: A schema older than this code; a standby, of which others decide what it means.
_TELLS_NOTHING = (errors.UndefinedTable, errors.ObjectNotInPrerequisiteState)


class FormerPrimary(psycopg.OperationalError):
    """The server accepts writes on a timeline that its cluster has left."""


def own() -> ScalarSelect[Any]:
    """Build SQL: the epoch of this database, as its row has it."""
    return select(installation.c.epoch).scalar_subquery()


def installation_of(sql: Connection) -> str:
    """Return the name of the installation in Redis, for a caller without names of its own."""
    keys = Keys()
    identity, timeline, _ = sql.exec_driver_sql(_IDENTITIES[-1]).one()
    name(keys, identity, timeline)
    return keys.installation


def learn(keys: Keys, connection: psycopg.Connection[Any]) -> None:
    """Name all keys by the database of this new connection, which is in autocommit.

    Raises:
        FormerPrimary: another connection of this process has led to a later timeline.
    """
    row, is_kept = None, True
    first = keys.identity_statement
    for number in (first, *(n for n in range(len(_IDENTITIES)) if n != first)):
        try:
            row = connection.execute(_IDENTITIES[number]).fetchone()
        except _HIDES_PARTS as error:
            # That one passes.
            is_kept = is_kept and not isinstance(error, errors.InternalError_)
            continue
        except _TELLS_NOTHING:
            return
        if is_kept:
            keys.identity_statement = number
        break
    if row is not None:
        identity, timeline, cluster = row
        if timeline:
            _remember(keys, cluster or identity, int(timeline, 16))
        name(keys, identity, timeline)


def _remember(keys: Keys, cluster: str, timeline: int) -> None:
    """Remember the timeline, unless a later one of the cluster is known."""
    known = keys.timelines.get(cluster, timeline)
    if timeline < known:
        error = FormerPrimary(
            f"a former primary accepts writes: it is on timeline {timeline} of its cluster, which"
            f" has timeline {known} by now; stop it; or, if it was restored, or you went back to it"
            " on purpose and the promoted server is gone for good, restart web and worker processes"
        )
        _refusals.failed("refusing a connection of Postgres: %s", error)
        raise error
    keys.timelines[cluster] = timeline


def name(keys: Keys, installation: str, timeline: str) -> None:
    """Change the names to those of an installation and a timeline, as `IDENTITY` has them."""
    before = keys.installation
    keys.installation = hashlib.sha256(installation.encode()).hexdigest()[:12]
    if before not in ("", keys.installation):
        log.warning(
            "Postgres identity changed: the prefix of names in Redis is now %s (was %s)",
            *(keys.installation, before),
        )
    keys.epoch = f"{keys.installation}.{timeline.lstrip('0')}"
