-- Lock this month's rows of `spending` of those end users of an org of whom a run has ended since a
-- moment, or else since the beginning of the month; in the one order.
SELECT s.scope FROM spending s JOIN (
    SELECT DISTINCT end_user_id FROM run_usage
    WHERE org_id = %(org_id)s AND end_user_id IS NOT NULL AND ended_at >= coalesce(
        %(since)s::timestamptz,
        date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
    )
) AS u ON s.scope = 'end_user:' || u.end_user_id
WHERE s.org_id = %(org_id)s AND s.month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
ORDER BY s.scope FOR UPDATE OF s
