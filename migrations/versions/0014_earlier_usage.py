"""Runs that ended before usage was kept by route have a row in `run_usage`, too.

Their totals were in no report. What they have used of each route was not recorded: all of it is
put to the route that they were created with. Nothing is charged and no budget changes.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

BATCH = 5_000
_FILL = sa.text(
    """
    WITH batch AS (
        SELECT * FROM runs WHERE id > :after ORDER BY id LIMIT :batch
    ), filled AS (
        INSERT INTO run_usage (run_id, route_id, org_id, user_id, api_key_id, persona_key, model,
            input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
            usage_source, cost_usd, ended_at, month)
        SELECT r.id, r.route_id, r.org_id, r.created_by_user_id, r.api_key_id,
            split_part(r.persona_id, '@', 1), r.model, r.input_tokens, r.output_tokens,
            r.cache_read_tokens, r.cache_write_tokens, r.reasoning_tokens, r.usage_source,
            r.cost_usd, r.ended_at, date_trunc('month', r.ended_at AT TIME ZONE 'UTC')::date
        FROM batch r
        WHERE r.ended_at IS NOT NULL
            AND (r.input_tokens > 0 OR r.output_tokens > 0 OR r.cost_usd > 0)
            AND NOT EXISTS (SELECT FROM run_usage u WHERE u.run_id = r.id)
            AND NOT EXISTS (SELECT FROM holds h WHERE h.run_id = r.id)
        ON CONFLICT DO NOTHING
    )
    SELECT id FROM batch ORDER BY id DESC LIMIT 1
    """
)


def upgrade() -> None:
    # Batch by batch, each a transaction of its own: it reads runs and locks none of them.
    with op.get_context().autocommit_block():
        after = "00000000-0000-0000-0000-000000000000"
        while after is not None:
            after = op.get_bind().scalar(_FILL, {"after": after, "batch": BATCH})
