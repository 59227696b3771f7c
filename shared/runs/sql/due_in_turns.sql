-- Find scheduled runs whose time has come, in turns of their orgs: the first run of each, then the
-- second of each. Of each org as many are read as it has turns, if all have equally many.
--
-- Each step from an org to the next is one look into an index, which has the run that is due first.
-- Each condition names the org, as the index does. The range of one org, and its place in the order,
-- let Postgres read that index alone: in the order of times it would pass all runs of other orgs.
WITH RECURSIVE step AS (
    (
        SELECT r.org_id, r.not_before FROM runs r
        WHERE r.state = 'scheduled' AND r.not_before IS NOT NULL AND r.position >= 2251799813685248
            AND r.ended_at IS NULL AND r.cancel_requested_at IS NULL
            AND r.org_id >= '00000000-0000-0000-0000-000000000000'
        ORDER BY r.org_id, r.not_before LIMIT 1
    )
    UNION ALL
    SELECT next.org_id, next.not_before FROM step CROSS JOIN LATERAL (
        SELECT r.org_id, r.not_before FROM runs r
        WHERE r.state = 'scheduled' AND r.not_before IS NOT NULL AND r.position >= 2251799813685248
            AND r.ended_at IS NULL AND r.cancel_requested_at IS NULL AND r.org_id > step.org_id
        ORDER BY r.org_id, r.not_before LIMIT 1
    ) AS next
), org AS (
    SELECT org_id FROM step WHERE not_before <= now()
), share AS (
    SELECT greatest(1, %(most)s / greatest(1, count(*))) AS most FROM org
), due AS (
    SELECT one.id, org.org_id, one.trace_id, one.not_before FROM org CROSS JOIN LATERAL (
        SELECT r.id, r.trace_id, r.not_before FROM runs r
        WHERE r.state = 'scheduled' AND r.not_before IS NOT NULL AND r.position >= 2251799813685248
            AND r.ended_at IS NULL AND r.cancel_requested_at IS NULL
            AND r.org_id >= org.org_id AND r.org_id <= org.org_id AND r.not_before <= now()
        ORDER BY r.org_id, r.not_before LIMIT (SELECT most FROM share)
    ) AS one
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY org_id ORDER BY not_before, id) AS turn FROM due
)
SELECT id, org_id, trace_id FROM ranked ORDER BY turn, not_before, id LIMIT %(most)s
