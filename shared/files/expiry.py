"""The removal of files that have expired: deleted ones, unfinished uploads, old tool results.

The bytes go first and the row last. An interruption between the two is repeated, which does no
harm; so do several processes at once. This is a loop of its own: a storage that is down must not
hold up the sweep, which recovers runs.
"""

import logging
from functools import partial

from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.files import files
from arkloop.shared.files.storage import Storage
from arkloop.shared.storage.connections import Connections

log = logging.getLogger(__name__)

SECONDS = 10.0
BATCH = 50


def remove_expired(connections: Connections, storage: Storage) -> int:
    """Remove one batch of expired files; returns how many.

    Those that the storage does not remove are logged, and come again after all others.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    with connections.reading() as sql:
        rows = files.expired(sql, limit=BATCH)
    removed, kept = [], []
    for row in rows:
        try:
            storage.remove(files.key_of(row.org_id, row.id))
            removed.append(row.id)
        except Exception as error:
            kept.append(row.id)
            # One line for all: most often it is the storage that is out of reach.
            why = f"{row.id}: {error.__cause__ or error!r}"
            if isinstance(error.__cause__, TimeoutError):
                break  # each one more would hold another thread of a storage that hangs
    if removed:
        with connections.transaction() as tx:
            files.forget(tx, removed)
    if kept:
        log.warning("expired files that could not be removed: %d, the last %s", len(kept), why)
        with connections.transaction() as tx:
            files.postpone(tx, kept)
    return len(removed)


def start(connections: Connections, storage: Storage) -> BackgroundLoop:
    """Remove expired files for as long as the process lives."""

    def step() -> float | None:
        return 0 if remove_expired(connections, storage) == BATCH else None

    # The sweep, in the same process, logs what is waited for.
    wait = partial(connections.wait_for_schema, level=logging.DEBUG)
    return BackgroundLoop("files", step, seconds=SECONDS, before=wait)
