"""The API of OpenAI's by which a model of an org is called.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("llm_models", sa.Column("api", sa.Text))
