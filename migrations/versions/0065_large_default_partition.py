"""Partitions are not attached while Postgres would look at a large default partition for them.

Revision ID: 0065
Revises: 0064
"""

from alembic import op
from sqlalchemy import text

revision = "0065"
down_revision = "0064"
branch_labels = None
depends_on = None

# Postgres looks at all rows of the default partition before it attaches another one, and nobody
# reads or writes events of that partition meanwhile: 0.4 s for each million. A constraint which
# says that none of them belongs to the new one spares it that; its rows are looked at beside
# everybody else, but for as long as it takes, which is for `arkloop migrate`. 32 MiB are read at
# once.
_ADD = """
CREATE OR REPLACE FUNCTION add_run_events_partition(lower_id uuid, upper_id uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '100ms'
AS $$
DECLARE
    name text := 'run_events_' || to_char(uuid_time(lower_id) AT TIME ZONE 'UTC', 'YYYYMMDD');
    is_excluded boolean := EXISTS (
        SELECT FROM pg_constraint WHERE conrelid = 'run_events_default'::regclass
            AND conname = 'ck_' || name AND convalidated
            AND pg_get_constraintdef(oid) = format(
                'CHECK (((run_id < %L::uuid) OR (run_id >= %L::uuid)))', lower_id, upper_id
            )
    );
BEGIN
    IF pg_relation_size('run_events_default') > 33554432 AND NOT is_excluded THEN
        RETURN NULL;
    END IF;
    EXECUTE format(
        'CREATE TABLE %I (LIKE run_events) WITH (autovacuum_vacuum_scale_factor = 0.02,'
        ' autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05)',
        name
    );
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format(
        'ALTER TABLE run_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        name, lower_id, upper_id
    );
    IF is_excluded THEN
        EXECUTE format('ALTER TABLE run_events_default DROP CONSTRAINT IF EXISTS %I', 'ck_' || name);
    END IF;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;
"""

# Constraints that a call of `arkloop migrate` which was killed has left. The caller has the lock
# with which that command makes partitions: there is no such call then.
_ADMIT = """
CREATE FUNCTION admit_run_events() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '100ms'
AS $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = 'run_events_default'::regclass
        AND starts_with(conname::text, 'ck_run_events_2')
    LOOP
        EXECUTE format('ALTER TABLE run_events_default DROP CONSTRAINT %I', name);
    END LOOP;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

REVOKE ALL ON FUNCTION admit_run_events() FROM PUBLIC;

-- The owner and the roles of the function beside it.
DO $$
DECLARE
    beside pg_proc := (
        SELECT p FROM pg_proc p WHERE oid = 'add_run_events_partition(uuid, uuid)'::regprocedure
    );
    role text;
BEGIN
    EXECUTE format(
        'ALTER FUNCTION admit_run_events() OWNER TO %I', pg_get_userbyid(beside.proowner)
    );
    FOR role IN SELECT r.rolname FROM aclexplode(beside.proacl) a
        JOIN pg_roles r ON r.oid = a.grantee WHERE a.grantee <> beside.proowner
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION admit_run_events() TO %I', role);
    END LOOP;
END $$;
"""


def upgrade() -> None:
    schema = op.get_bind().scalar(text("SELECT quote_ident(current_schema())"))
    op.execute(_ADD.format(schema=schema))
    op.execute(_ADMIT.format(schema=schema))
