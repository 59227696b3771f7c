"""Lists are filtered by metadata, end user and error code, each by an index in the list's order.

Revision ID: 0027
Revises: 0026
"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

# No row has metadata yet: its column is as new. Triggers, for the reason that 0003 has. A row without metadata costs the check of a condition.
_PAIRS = """
CREATE TABLE {one}_metadata (
    id uuid NOT NULL,
    pair text COLLATE "C" NOT NULL,
    visible_to uuid,
    created_at timestamptz NOT NULL,
    CONSTRAINT pk_{one}_metadata PRIMARY KEY (id, pair)
) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

CREATE INDEX ix_{one}_metadata_visible_to_pair_created_at_id
    ON {one}_metadata (visible_to, pair, created_at, id);

CREATE FUNCTION {one}s_have_their_pairs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM {one}_metadata WHERE id = OLD.id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO {one}_metadata (id, pair, visible_to, created_at)
        SELECT NEW.id, key || '=' || value, NEW.visible_to, NEW.created_at
        FROM jsonb_each_text(NEW.metadata);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER {one}s_have_their_pairs_inserted AFTER INSERT ON {one}s
    FOR EACH ROW WHEN (NEW.metadata <> '{{}}') EXECUTE FUNCTION {one}s_have_their_pairs();

CREATE TRIGGER {one}s_have_their_pairs_updated
    AFTER UPDATE OF metadata, visible_to, created_at ON {one}s
    FOR EACH ROW WHEN (
        (NEW.metadata <> '{{}}' OR OLD.metadata <> '{{}}')
        AND (NEW.metadata, NEW.visible_to, NEW.created_at)
            IS DISTINCT FROM (OLD.metadata, OLD.visible_to, OLD.created_at)
    ) EXECUTE FUNCTION {one}s_have_their_pairs();

CREATE TRIGGER {one}s_have_their_pairs_deleted AFTER DELETE ON {one}s
    FOR EACH ROW WHEN (OLD.metadata <> '{{}}') EXECUTE FUNCTION {one}s_have_their_pairs();
"""

_INDEXES = (("runs", "end_user_id"), ("runs", "error_code"), ("threads", "end_user_id"))


def upgrade() -> None:
    # Runs are created and executed while these are built. A build that was interrupted leaves an
    # invalid index behind, which would count as existing.
    with op.get_context().autocommit_block():
        for table, column in _INDEXES:
            name = f"ix_{table}_visible_to_{column}_created_at_id"
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                table,
                ["visible_to", column, "created_at", "id"],
                postgresql_where=sa.text(f"{column} IS NOT NULL"),
                postgresql_concurrently=True,
            )
    for one in ("thread", "run"):
        op.execute(_PAIRS.format(one=one))
