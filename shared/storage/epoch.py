"""The identity of the database and of its history: the first part of every name in Redis.

Two installations that share a Redis must not take each other's messages, and a restored backup or
a promoted standby writes other events under numbers that Redis has already. So names begin with
what differs then: the row of `installation`, with the transaction that wrote it (a dump that is
loaded writes it again), the database's own number, and the timeline of Postgres' log (a promotion
and a recovery to a point in time begin a new one). A copy of the files has all of that: see
`shared/storage/rewinds.py`. So may a second restore have what the first one began with, which is
why `arkloop rotate-epoch` is a step of every restore.

None of it needs a privilege. A server that hides its log (Aurora does) has no timeline here.
"""

import hashlib
from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy import ScalarSelect, select

from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.tables.storage import installation

#: Columns: what identifies the installation, the timeline, the position in the log in bytes.
IDENTITY = """
SELECT i.epoch || '/' || i.xmin || '/' || d.oid, left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint
FROM installation i, pg_database d WHERE d.datname = current_database()
"""
_IDENTITY_WITHOUT_LOG = """
SELECT i.epoch || '/' || i.xmin || '/' || d.oid, ''
FROM installation i, pg_database d WHERE d.datname = current_database()
"""

_HIDES_ITS_LOG = (errors.FeatureNotSupported, errors.InsufficientPrivilege)
#: A schema older than this code; a standby, of which others decide what it means.
_TELLS_NOTHING = (errors.UndefinedTable, errors.ObjectNotInPrerequisiteState)


def own() -> ScalarSelect[Any]:
    """Build SQL: the epoch of this database, as its row has it."""
    return select(installation.c.epoch).scalar_subquery()


def learn(keys: Keys, connection: psycopg.Connection[Any]) -> None:
    """Name all keys by the database of this new connection, which is in autocommit."""
    try:
        row = connection.execute(IDENTITY).fetchone()
    except _HIDES_ITS_LOG:
        row = connection.execute(_IDENTITY_WITHOUT_LOG).fetchone()
    except _TELLS_NOTHING:
        return
    if row is not None:
        name(keys, row[0], row[1])


def name(keys: Keys, installation: str, timeline: str) -> None:
    """Change the names to those of an installation and a timeline, as `IDENTITY` has them."""
    keys.installation = hashlib.sha256(installation.encode()).hexdigest()[:12]
    keys.epoch = f"{keys.installation}.{timeline.lstrip('0')}"
