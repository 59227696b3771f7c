"""The function that drops partitions can be made and restored by an owner who is no superuser.

Revision ID: 0076
Revises: 0075
"""

from alembic import op
from sqlalchemy import text

revision = "0076"
down_revision = "0075"
branch_labels = None
depends_on = None

# Databases that a superuser has migrated have the function with a clause `SET "arkloop.orgs"`: only
# superusers may store a parameter there that Postgres does not know. A dump that the owner has
# restored lacks the function, and gets it here.
_DROP = """
CREATE OR REPLACE FUNCTION drop_run_events_partition(partition text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '100ms'
AS $$
DECLARE
    lower_bound uuid;
    upper_bound uuid;
    orgs text := coalesce(current_setting('arkloop.orgs', true), '');
    is_needed boolean;
BEGIN
    SELECT coalesce(p.lower_id, '00000000-0000-0000-0000-000000000000'), p.upper_id
    INTO lower_bound, upper_bound
    FROM run_events_partitions() AS p WHERE p.name = partition;
    IF upper_bound IS NULL OR uuid_time(upper_bound) > now() - interval '1 day' THEN
        RETURN false;
    END IF;
    -- Before anything is locked, and once more when it is.
    FOR checks IN 1..2 LOOP
        -- Not by a SET clause, which only a superuser may store. On errors it is rolled back.
        PERFORM set_config('arkloop.orgs', '*', true);
        is_needed := EXISTS (SELECT FROM runs WHERE id >= lower_bound AND id < upper_bound)
            OR EXISTS (
                SELECT FROM forgotten_events WHERE run_id >= lower_bound AND run_id < upper_bound
            );
        PERFORM set_config('arkloop.orgs', orgs, true);
        IF is_needed THEN
            RETURN false;
        END IF;
        LOCK TABLE ONLY run_events IN ACCESS EXCLUSIVE MODE;
    END LOOP;
    EXECUTE format('DROP TABLE %I', partition);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

REVOKE ALL ON FUNCTION drop_run_events_partition(text) FROM PUBLIC;
"""


def upgrade() -> None:
    schema = op.get_bind().scalar(text("SELECT quote_ident(current_schema())"))
    op.execute(_DROP.format(schema=schema))
