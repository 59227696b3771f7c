"""Runs count as attempts what follows the loss of a worker, no longer each claim.

The column keeps its name and its 0 before the first claim, by which the previous release tells new
runs from those that resume.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

BATCH = 5_000
_RECOUNT = sa.text(
    """
    WITH batch AS (
        SELECT id FROM runs WHERE id > :after ORDER BY id LIMIT :batch
    ), recounted AS (
        UPDATE runs r SET attempt = 1 + (
            SELECT count(*) FROM run_events e
            WHERE e.run_id = r.id AND e.type = 'run.resumed'
                AND e.payload LIKE '%"reason":"worker_lost"%'
        )
        FROM batch WHERE r.id = batch.id AND r.attempt > 1
    )
    SELECT id FROM batch ORDER BY id DESC LIMIT 1
    """
)


def upgrade() -> None:
    # Batch by batch, each a transaction of its own, so that no run is locked for long.
    with op.get_context().autocommit_block():
        after = "00000000-0000-0000-0000-000000000000"
        while after is not None:
            after = op.get_bind().scalar(_RECOUNT, {"after": after, "batch": BATCH})
