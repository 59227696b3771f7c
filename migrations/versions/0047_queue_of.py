"""A function that looks at the queue of a thread, within a statement that has locked the thread.

Revision ID: 0047
Revises: 0046
"""

from alembic import op

revision = "0047"
down_revision = "0046"
branch_labels = None
depends_on = None

# VOLATILE: its query sees what is committed when that begins. A statement that has waited
# for no lock, but has got one that was just released, sees by itself what was there before.
# From 2^51 on are the positions of what waits.
_FUNCTION = """
CREATE OR REPLACE FUNCTION queue_of(
    wanted_thread_id uuid, OUT waiting bigint, OUT pending bigint, OUT newest bigint
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    SELECT q.waiting + (
            SELECT count(*) FROM offered_messages o WHERE o.thread_id = wanted_thread_id
        ),
        q.pending,
        greatest(
            (SELECT max(r.position) FROM runs r
                WHERE r.thread_id = wanted_thread_id AND r.position >= 2251799813685248),
            (SELECT max(m.position) FROM messages m
                WHERE m.thread_id = wanted_thread_id AND m.position >= 2251799813685248)
        )
    INTO waiting, pending, newest
    FROM (
        SELECT count(*) AS waiting, count(*) FILTER (WHERE r.state = 'pending') AS pending
        FROM runs r
        WHERE r.thread_id = wanted_thread_id AND r.position >= 2251799813685248
            AND r.ended_at IS NULL
    ) AS q;
END $$;
"""


def upgrade() -> None:
    op.execute(_FUNCTION)
