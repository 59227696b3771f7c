"""Counts of the runs of orgs that have many, so that not each request reads all of them.

Revision ID: 0061
Revises: 0060
"""

from alembic import op

revision = "0061"
down_revision = "0060"
branch_labels = None
depends_on = None

# UNLOGGED: what a crash empties is counted again.
_TABLE = """
CREATE UNLOGGED TABLE counted_runs (
    org_id uuid NOT NULL,
    of_keys jsonb NOT NULL,
    unended bigint NOT NULL,
    queued bigint NOT NULL,
    counted_at timestamptz NOT NULL,
    CONSTRAINT pk_counted_runs PRIMARY KEY (org_id),
    CONSTRAINT fk_counted_runs_org_id FOREIGN KEY (org_id) REFERENCES orgs (id) ON DELETE CASCADE
) WITH (fillfactor = 50);
"""

# The release before calls the function from this commit on, for as long as later migrations take or
# have to be tried again; `arkloop migrate` grants what is new only after all of them.
_PRIVILEGES = """
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT quote_ident(r.rolname) AS role, string_agg(a.privilege_type, ', ') AS may
        FROM pg_class c CROSS JOIN aclexplode(c.relacl) AS a JOIN pg_roles r ON r.oid = a.grantee
        WHERE c.oid = 'runs'::regclass AND a.grantee <> c.relowner GROUP BY r.rolname
    LOOP
        EXECUTE format('GRANT %s ON counted_runs TO %s', one.may, one.role);
    END LOOP;
END $$;
"""

# VOLATILE: each of its queries sees what is committed when that begins. So the count has what was
# committed before the lock was free, whatever the calling statement sees.
# Orgs are locked in one order: two groups would otherwise wait for each other.
# plan_cache_mode: Postgres takes the plans for one org for better ones, and would make them anew at
# each call, which takes three times as long as to execute them.
# 0 is no limit. An entry of the result is null, or the limit that refuses the run at this place;
# those before it, which are not refused, count as if they had been created.
#
# Of an org with 500 runs or more the count is kept, together with the runs that were admitted
# since. Runs may have ended meanwhile, so it is never too low, and what it leaves room for is
# admitted. Where it leaves none, the runs are counted again, all of the group anew; unless they
# were counted in the last tenth of a second. Queued runs can also become more when runs that
# waited for somebody continue: never more than all that have not ended, which are compared then.
# After a second a count is not used: while an org has no limits nothing is added to it.
_REFUSALS = """
CREATE OR REPLACE FUNCTION run_refusals(
    org_ids uuid[], api_key_ids uuid[],
    key_concurrent integer[], org_concurrent integer[], org_queued integer[]
) RETURNS text[] LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    refusals text[] := array_fill(NULL::text, ARRAY[cardinality(org_ids)]);
    org uuid;
    kept counted_runs;
    was_kept boolean;
    is_recent boolean;
    is_exact boolean;
    of_key text;
    in_key bigint;
    refusal text;
BEGIN
    FOR org IN
        SELECT DISTINCT w.org_id
        FROM unnest(org_ids, key_concurrent, org_concurrent, org_queued) AS w (org_id, k, o, q)
        WHERE w.k > 0 OR w.o > 0 OR w.q > 0 ORDER BY w.org_id
    LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended('runs of ' || org, 0));
        SELECT c.* INTO kept FROM counted_runs AS c WHERE c.org_id = org
            AND c.counted_at BETWEEN clock_timestamp() - interval '1 second' AND clock_timestamp();
        was_kept := FOUND;
        is_recent := kept.counted_at > clock_timestamp() - interval '0.1 seconds';
        <<judging>> LOOP
            is_exact := kept.org_id IS NULL;
            IF is_exact THEN
                SELECT org, coalesce(
                        jsonb_object_agg(coalesce(u.api_key_id::text, ''), u.unended), '{}'
                    ), coalesce(sum(u.unended), 0), coalesce(sum(u.queued), 0), clock_timestamp()
                INTO kept FROM unended_runs(org) AS u;
            END IF;
            FOR i IN 1 .. cardinality(org_ids) LOOP
                CONTINUE WHEN org_ids[i] <> org;
                of_key := coalesce(api_key_ids[i]::text, '');
                in_key := coalesce((kept.of_keys -> of_key)::bigint, 0);
                refusal := CASE
                    WHEN key_concurrent[i] > 0 AND of_key <> '' AND in_key >= key_concurrent[i]
                        THEN 'key_concurrent_runs'
                    WHEN org_concurrent[i] > 0 AND kept.unended >= org_concurrent[i]
                        THEN 'org_concurrent_runs'
                    WHEN org_queued[i] > 0 AND kept.queued >= org_queued[i]
                        THEN 'org_queued_runs'
                    WHEN org_queued[i] > 0 AND NOT is_exact AND kept.unended >= org_queued[i]
                        THEN 'unknown'
                END;
                IF NOT is_exact AND (refusal = 'unknown' OR (refusal <> '' AND NOT is_recent)) THEN
                    kept := NULL;
                    CONTINUE judging;
                END IF;
                IF refusal IS NULL THEN
                    kept.of_keys := kept.of_keys || jsonb_build_object(of_key, in_key + 1);
                    kept.unended := kept.unended + 1;
                    kept.queued := kept.queued + 1;
                END IF;
                refusals[i] := refusal;
            END LOOP;
            EXIT judging;
        END LOOP;
        IF was_kept OR kept.unended >= 500 THEN
            INSERT INTO counted_runs SELECT kept.*
            ON CONFLICT (org_id) DO UPDATE SET of_keys = excluded.of_keys,
                unended = excluded.unended, queued = excluded.queued,
                counted_at = excluded.counted_at;
        END IF;
    END LOOP;
    RETURN refusals;
END $$;
"""


def upgrade() -> None:
    op.execute(_TABLE)
    op.execute(_PRIVILEGES)
    op.execute(_REFUSALS)
