-- Count the runs of each org that have not ended, by state. The org whose run has waited for a worker
-- longest comes first. Suspended orgs, whose queued runs wait for no worker, come last; they are there
-- without any run, too, for they are to be found. Where there are more than the limit, as many of both
-- kinds are taken as far as there are some; of the suspended ones the latest. With `org_id`, this org alone.
SELECT org_id, name, slug, weight, suspended_at, queued, oldest_queued_at, queued_for_agents,
    oldest_queued_for_agents_at, executing, waiting, not_yet_due
FROM (
    SELECT o.name, o.slug, coalesce(s.weight, 1) AS weight, o.suspended_at, u.*,
        row_number() OVER (
            PARTITION BY o.suspended_at IS NULL
            ORDER BY o.suspended_at DESC, u.oldest_queued_at NULLS LAST, u.queued DESC,
                u.executing DESC, u.org_id
        ) AS place
    FROM (
        SELECT org_id,
            count(*) FILTER (WHERE state = 'queued' AND agent IS NULL) AS queued,
            min(queued_at) FILTER (WHERE state = 'queued' AND agent IS NULL) AS oldest_queued_at,
            count(*) FILTER (WHERE state = 'queued' AND agent IS NOT NULL) AS queued_for_agents,
            min(queued_at) FILTER (WHERE state = 'queued' AND agent IS NOT NULL) AS oldest_queued_for_agents_at,
            count(*) FILTER (WHERE state = 'executing') AS executing,
            count(*) FILTER (WHERE state IN ('waiting', 'suspended')) AS waiting,
            count(*) FILTER (WHERE state IN ('pending', 'scheduled')) AS not_yet_due
        FROM runs WHERE ended_at IS NULL AND org_id IS NOT NULL GROUP BY org_id
        UNION ALL
        SELECT id, 0, NULL, 0, NULL, 0, 0, 0 FROM orgs o
        WHERE suspended_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM runs r WHERE r.org_id = o.id AND r.ended_at IS NULL)
    ) AS u
    JOIN orgs o ON o.id = u.org_id LEFT JOIN org_settings s ON s.org_id = u.org_id
    WHERE %(org_id)s::uuid IS NULL OR u.org_id = %(org_id)s
    ORDER BY place, o.suspended_at IS NULL, u.org_id LIMIT %(limit)s
) AS found
ORDER BY suspended_at IS NOT NULL, oldest_queued_at NULLS LAST, queued DESC, executing DESC, org_id
