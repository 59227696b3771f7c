"""The usage of orgs summed up every ten minutes, so that reports of today read few rows, too.

Revision ID: 0068
Revises: 0067
"""

from alembic import op

revision = "0068"
down_revision = "0067"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE usage_intervals (
            org_id uuid NOT NULL
                CONSTRAINT fk_usage_intervals_org_id REFERENCES orgs (id) ON DELETE CASCADE,
            began_at timestamptz NOT NULL,
            persona_key text NOT NULL,
            api_key_id uuid,
            model text,
            runs bigint NOT NULL,
            input_tokens bigint NOT NULL,
            output_tokens bigint NOT NULL,
            cache_read_tokens bigint NOT NULL,
            cache_write_tokens bigint NOT NULL,
            reasoning_tokens bigint NOT NULL,
            cost_usd numeric(28, 8) NOT NULL,
            credits bigint NOT NULL
        )
        """
    )
    op.execute(
        "CREATE INDEX ix_usage_intervals_org_id_began_at ON usage_intervals (org_id, began_at)"
    )
    # The sweep deletes those of all orgs whose day is summed up.
    op.execute("CREATE INDEX ix_usage_intervals_began_at ON usage_intervals (began_at)")
    # Null: those of the first day without sums are to be added from its start.
    op.execute("ALTER TABLE usage_days_until ADD COLUMN interval_at timestamptz")
