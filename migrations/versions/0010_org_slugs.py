"""Orgs get a slug, by which the operator's commands find them; names are not unique.

Registration names an org after its user's login, and logs this user in. So an org without a member
who is its namesake and has logged in was made by the operator. Such an org keeps its name as its
slug, if that is a valid one and no other such org has the name. The others get no slug and are
found by their ids.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_KEEP_NAMES = """
    WITH made_by_the_operator AS (
        SELECT o.id, o.name FROM orgs o
        WHERE EXISTS (SELECT FROM memberships m WHERE m.org_id = o.id)
            AND NOT EXISTS (
                SELECT FROM memberships m JOIN users u ON u.id = m.user_id
                WHERE m.org_id = o.id AND lower(u.login) = lower(o.name)
                    AND EXISTS (SELECT FROM refresh_tokens t WHERE t.user_id = u.id)
            )
    )
    UPDATE orgs SET slug = made.name FROM made_by_the_operator made
    WHERE orgs.id = made.id
        AND made.name ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND length(made.name) <= 30
        AND NOT EXISTS (
            SELECT FROM made_by_the_operator other
            WHERE other.name = made.name AND other.id <> made.id
        )
"""


def upgrade() -> None:
    op.add_column("orgs", sa.Column("slug", sa.Text))
    op.create_unique_constraint("uq_orgs_slug", "orgs", ["slug"])
    op.execute(_KEEP_NAMES)
