"""The platform at which an org's provider is called, and its options.

Revision ID: 0024
Revises: 0023
"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    for name in ("platform", "region", "project_id", "api_version"):
        op.add_column("llm_providers", sa.Column(name, sa.Text))
