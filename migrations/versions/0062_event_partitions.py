"""Events are in partitions by run id, which is time-ordered, so that old ones are dropped.

Revision ID: 0062
Revises: 0061
"""

import logging

from alembic import op
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

revision = "0062"
down_revision = "0061"

log = logging.getLogger(__name__)

# While the rows are looked at, which blocks nobody but takes long, and if the migration is
# interrupted then, runs of today and of the next days are below it.
_DAYS_OF_THE_FIRST = 7
_DAYS_OF_THE_NEXT = 15
_DAYS_LEFT = 1

_BOUND = """
SELECT (lpad(to_hex(extract(epoch FROM date_trunc('day', now() AT TIME ZONE 'UTC')
    + make_interval(days => :days))::bigint * 1000), 12, '0') || repeat('0', 20))::uuid
"""
_CHECK = "ck_run_events_is_in_the_first"
#: The bound of a constraint that is validated: then somebody held the table too long for the swap.
#: Its rows are not read once more, unless the next partition would be too late.
_CHECKED = f"""
SELECT bound::uuid FROM (
    SELECT substring(pg_get_constraintdef(oid) FROM '''([0-9a-f-]{{36}})''') AS bound
    FROM pg_constraint
    WHERE conrelid = 'run_events'::regclass AND conname = '{_CHECK}' AND convalidated
) AS c WHERE bound::uuid > ({_BOUND})
"""

# The table becomes the first partition, and another one has its name. All in one transaction, with
# what others rely on: owner, privileges, row-level security, the trigger of deliveries.
#
# The table of forgotten runs changes its name, too: the previous release deletes events by ctid,
# which in a partitioned table stands for one row of each partition. Under the old name it finds a
# table that stays empty, and so collects nothing.
#
# `runs` first, and for less than the time after which Postgres looks for deadlocks: a transaction
# that has read events and is about to write to `runs` is not what gives way. No deletion of runs is
# under way then, which would note them under the old name.
_SWAP = """
SET LOCAL lock_timeout = '500ms';
LOCK TABLE runs IN SHARE MODE;
LOCK TABLE run_events, forgotten_runs IN ACCESS EXCLUSIVE MODE;
DROP TRIGGER events_have_their_deliveries ON run_events;
ALTER TABLE run_events RENAME TO run_events_first;
ALTER INDEX pk_run_events RENAME TO run_events_first_pkey;
CREATE TABLE run_events (
    LIKE run_events_first, CONSTRAINT pk_run_events PRIMARY KEY (run_id, seq)
) PARTITION BY RANGE (run_id);
ALTER TABLE run_events ATTACH PARTITION run_events_first FOR VALUES FROM (MINVALUE) TO ({bound});
ALTER TABLE run_events_first DROP CONSTRAINT {check};
CREATE TABLE run_events_default PARTITION OF run_events DEFAULT WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);
CREATE TRIGGER events_have_their_deliveries AFTER INSERT ON run_events
    FOR EACH ROW WHEN (
        NEW.type IN ('run.completed', 'run.failed', 'run.cancelled', 'run.waiting_for_input')
    ) EXECUTE FUNCTION events_have_their_deliveries();

ALTER TABLE forgotten_runs RENAME TO forgotten_events;
ALTER INDEX pk_forgotten_runs RENAME TO pk_forgotten_events;
DROP INDEX ix_forgotten_runs_forgotten_at;
ALTER TABLE forgotten_events ADD COLUMN collect_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX ix_forgotten_events_collect_at ON forgotten_events (collect_at);
CREATE TABLE forgotten_runs (
    run_id uuid NOT NULL CONSTRAINT pk_forgotten_runs PRIMARY KEY,
    forgotten_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_forgotten_runs_is_empty CHECK (false)
);
CREATE INDEX ix_forgotten_runs_forgotten_at ON forgotten_runs (forgotten_at);
CREATE OR REPLACE FUNCTION runs_leave_their_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO forgotten_events (run_id) SELECT id FROM gone ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
"""

# A role that owns no table keeps the partitions by two functions, which work with the owner's
# privileges and change nothing that is in use. Both give up, and return false, where somebody has
# used the table for too long: everybody else would wait behind them.
#
# A partition has row-level security and no policy: events are read by `run_events` alone.
_FUNCTIONS = """
CREATE FUNCTION run_events_partitions(OUT name text, OUT lower_id uuid, OUT upper_id uuid)
RETURNS SETOF record LANGUAGE sql STABLE AS $$
    SELECT p.name,
        substring(p.bounds FROM 'FROM \\(''([0-9a-f-]{{36}})''\\)')::uuid,
        substring(p.bounds FROM 'TO \\(''([0-9a-f-]{{36}})''\\)')::uuid
    FROM (
        SELECT c.relname::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass('run_events')
    ) AS p
$$;

CREATE FUNCTION uuid_time(id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT to_timestamp(
        ('x' || lpad(left(replace(id::text, '-', ''), 12), 16, '0'))::bit(64)::bigint / 1000.0
    )
$$;

CREATE FUNCTION add_run_events_partition(lower_id uuid, upper_id uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '100ms'
AS $$
DECLARE
    name text := 'run_events_' || to_char(uuid_time(lower_id) AT TIME ZONE 'UTC', 'YYYYMMDD');
BEGIN
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
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

CREATE FUNCTION drop_run_events_partition(partition text) RETURNS boolean
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

REVOKE ALL ON FUNCTION add_run_events_partition(uuid, uuid), drop_run_events_partition(text)
    FROM PUBLIC;
"""

_AS_BEFORE = """
DO $$
DECLARE
    old pg_class := (SELECT c FROM pg_class c WHERE oid = 'run_events_first'::regclass);
    owner text := (SELECT quote_ident(rolname) FROM pg_roles WHERE oid = old.relowner);
    one record;
    sort text;
BEGIN
    FOREACH sort IN ARRAY ARRAY[
        'TABLE run_events', 'TABLE run_events_default', 'TABLE forgotten_runs',
        'FUNCTION add_run_events_partition(uuid, uuid)',
        'FUNCTION drop_run_events_partition(text)'
    ] LOOP
        EXECUTE format('ALTER %s OWNER TO %s', sort, owner);
    END LOOP;
    FOR one IN SELECT polname, pg_get_expr(polqual, polrelid) AS condition FROM pg_policy
        WHERE polrelid = old.oid
    LOOP
        EXECUTE format('CREATE POLICY %I ON run_events USING (%s)', one.polname, replace(
            one.condition, 'run_events_first.', 'run_events.'
        ));
        EXECUTE format('DROP POLICY %I ON run_events_first', one.polname);
    END LOOP;
    IF old.relrowsecurity THEN
        ALTER TABLE run_events ENABLE ROW LEVEL SECURITY;
    END IF;
    IF old.relforcerowsecurity THEN
        ALTER TABLE run_events FORCE ROW LEVEL SECURITY;
    END IF;
    ALTER TABLE run_events_first ENABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
    ALTER TABLE run_events_default ENABLE ROW LEVEL SECURITY;
    FOR one IN SELECT quote_ident(r.rolname) AS role, string_agg(a.privilege_type, ', ') AS may,
            bool_or(a.privilege_type = 'DELETE') AS deletes
        FROM aclexplode(old.relacl) a JOIN pg_roles r ON r.oid = a.grantee
        WHERE a.grantee <> old.relowner GROUP BY r.rolname
    LOOP
        EXECUTE format('GRANT %s ON run_events, forgotten_runs TO %s', one.may, one.role);
        IF one.deletes THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION add_run_events_partition(uuid, uuid),'
                ' drop_run_events_partition(text) TO %s', one.role);
        END IF;
    END LOOP;
END $$;
"""


def upgrade() -> None:
    sql = op.get_bind()
    checked = sql.scalar(text(_CHECKED), {"days": _DAYS_LEFT})
    first = checked or sql.scalar(text(_BOUND), {"days": _DAYS_OF_THE_FIRST})
    following = sql.scalar(text(_BOUND), {"days": _DAYS_OF_THE_FIRST + _DAYS_OF_THE_NEXT})
    schema = sql.scalar(text("SELECT quote_ident(current_schema())"))
    highest = sql.scalar(text("SELECT run_id FROM run_events ORDER BY run_id DESC LIMIT 1"))
    if is_odd := highest is not None and highest >= first:
        log.warning("run %s is of the future: there will be no other partition of events", highest)
    condition = "true" if is_odd else f"run_id < '{first}'"
    if checked is None:
        _check(condition)
    bound = "MAXVALUE" if is_odd else f"'{first}'"
    op.execute(_SWAP.format(bound=bound, check=_CHECK))
    op.execute(_FUNCTIONS.format(schema=schema))
    op.execute(_AS_BEFORE)
    if not is_odd:
        op.execute(f"SELECT add_run_events_partition('{first}', '{following}')")


def _check(condition: str) -> None:
    """Let Postgres look at all rows, beside everybody else."""
    with op.get_context().autocommit_block():
        op.execute(f"ALTER TABLE run_events DROP CONSTRAINT IF EXISTS {_CHECK}")
        op.execute(f"ALTER TABLE run_events ADD CONSTRAINT {_CHECK} CHECK ({condition}) NOT VALID")
        try:
            op.execute(f"ALTER TABLE run_events VALIDATE CONSTRAINT {_CHECK}")
        except IntegrityError:
            op.execute(f"ALTER TABLE run_events DROP CONSTRAINT {_CHECK}")
            raise
