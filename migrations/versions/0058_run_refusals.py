"""Functions that count the runs of orgs, and judge by their limits within the creating statement.

Revision ID: 0058
Revises: 0057
"""

from alembic import op

revision = "0058"
down_revision = "0057"
branch_labels = None
depends_on = None

# A message that is offered to an active run becomes a run of its own if that ends first. Sub-runs
# belong to the run that has started them.
_UNENDED = """
CREATE OR REPLACE FUNCTION unended_runs(wanted_org_id uuid)
RETURNS TABLE (api_key_id uuid, unended bigint, queued bigint) LANGUAGE sql STABLE AS $$
    SELECT u.api_key_id, count(*),
        count(*) FILTER (WHERE u.state IN ('queued', 'pending', 'scheduled'))
    FROM (
        SELECT r.api_key_id, r.state FROM runs r
        WHERE r.org_id = wanted_org_id AND r.ended_at IS NULL AND r.parent_run_id IS NULL
            AND r.state IN ('queued', 'executing', 'waiting', 'suspended', 'pending', 'scheduled')
        UNION ALL
        SELECT o.api_key_id, 'pending' FROM offered_messages o WHERE o.org_id = wanted_org_id
    ) AS u
    GROUP BY u.api_key_id
$$;
"""

# VOLATILE: each of its queries sees what is committed when that begins. So the count has what was
# committed before the lock was free, whatever the calling statement sees.
# Orgs are locked in one order: two groups would otherwise wait for each other.
# 0 is no limit. An entry of the result is null, or the limit that refuses the run at this place;
# those before it, which are not refused, count as if they had been created.
_REFUSALS = """
CREATE OR REPLACE FUNCTION run_refusals(
    org_ids uuid[], api_key_ids uuid[],
    key_concurrent integer[], org_concurrent integer[], org_queued integer[]
) RETURNS text[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    refusals text[] := array_fill(NULL::text, ARRAY[cardinality(org_ids)]);
    org uuid;
    of_keys jsonb;
    of_key text;
    in_key bigint;
    in_org bigint;
    in_queue bigint;
BEGIN
    FOR org IN
        SELECT DISTINCT w.org_id
        FROM unnest(org_ids, key_concurrent, org_concurrent, org_queued) AS w (org_id, k, o, q)
        WHERE w.k > 0 OR w.o > 0 OR w.q > 0 ORDER BY w.org_id
    LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended('runs of ' || org, 0));
        SELECT coalesce(jsonb_object_agg(coalesce(u.api_key_id::text, ''), u.unended), '{}'),
            coalesce(sum(u.unended), 0), coalesce(sum(u.queued), 0)
        INTO of_keys, in_org, in_queue FROM unended_runs(org) AS u;
        FOR i IN 1 .. cardinality(org_ids) LOOP
            CONTINUE WHEN org_ids[i] <> org;
            of_key := coalesce(api_key_ids[i]::text, '');
            in_key := coalesce((of_keys -> of_key)::bigint, 0);
            IF key_concurrent[i] > 0 AND of_key <> '' AND in_key >= key_concurrent[i] THEN
                refusals[i] := 'key_concurrent_runs';
            ELSIF org_concurrent[i] > 0 AND in_org >= org_concurrent[i] THEN
                refusals[i] := 'org_concurrent_runs';
            ELSIF org_queued[i] > 0 AND in_queue >= org_queued[i] THEN
                refusals[i] := 'org_queued_runs';
            ELSE
                of_keys := of_keys || jsonb_build_object(of_key, in_key + 1);
                in_org := in_org + 1;
                in_queue := in_queue + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN refusals;
END $$;
"""


def upgrade() -> None:
    op.execute(_UNENDED)
    op.execute(_REFUSALS)
