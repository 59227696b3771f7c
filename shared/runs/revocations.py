"""Runs of revoked API keys: they are cancelled, so that a key that leaked stops spending.

Only revocation does this. A key that expires, a logout and a new password end access and leave
runs alone: what was started by then was wanted.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Uuid, bindparam, func, select, text

from shared.runs.states import RunState
from shared.storage import signals
from shared.storage.connections import Transaction
from shared.storage.tables.accounts import api_keys

#: How long the sweep looks for runs of a revoked key. A web process accepts the key for 2 s more,
#: and runs that were locked at the moment of the revocation have to be found later.
WATCHED = timedelta(hours=1)

# The literal states let Postgres use the index of active runs. Rows are skipped, not waited for,
# if a worker is writing their events: the sweep comes back to them.
_REQUEST_CANCEL = text(
    """
    WITH active AS (
        SELECT r.id, k.user_id FROM api_keys k JOIN runs r ON r.api_key_id = k.id
        WHERE k.id = ANY(:key_ids) AND r.state IN ('queued', 'executing', 'waiting')
            AND r.cancel_requested_at IS NULL
        ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
    )
    UPDATE runs r
    SET cancel_requested_at = now(), cancel_requested_by = coalesce(:by_user_id, active.user_id)
    FROM active WHERE r.id = active.id
    RETURNING r.id, r.state, r.owner, r.cancel_requested_by
    """
).bindparams(bindparam("by_user_id", type_=Uuid))


def recently_revoked(tx: Transaction) -> Sequence[UUID]:
    """Return the keys that were revoked within `WATCHED`."""
    return tx.sql.scalars(
        select(api_keys.c.id).where(api_keys.c.revoked_at > func.now() - WATCHED)
    ).all()


def cancel_runs(
    tx: Transaction, key_ids: Sequence[UUID], *, by_user_id: UUID | None = None
) -> None:
    """Request the cancellation of all active runs of these keys, by default for their owners.

    A run that is being executed ends at once, by a signal to its worker. No worker claims the
    others any more, and the sweep ends them.
    """
    cancelled = tx.sql.execute(
        _REQUEST_CANCEL, {"key_ids": list(key_ids), "by_user_id": by_user_id}
    ).all()
    tx.after_commit += [
        signals.Cancel(run.id, run.owner, run.cancel_requested_by)
        for run in cancelled
        if run.state == RunState.EXECUTING
    ]
