"""The usage of orgs summed up by the day, so that reports read few rows.

Revision ID: 0015
Revises: 0014
"""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE usage_days (
            org_id uuid NOT NULL
                CONSTRAINT fk_usage_days_org_id REFERENCES orgs (id) ON DELETE CASCADE,
            day date NOT NULL,
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
    op.execute("CREATE INDEX ix_usage_days_org_id_day ON usage_days (org_id, day)")
    # The sweep finds the first day that has runs, and fills one day in each pass.
    op.execute("CREATE TABLE usage_days_until (day date)")
    op.execute("INSERT INTO usage_days_until VALUES (NULL)")
