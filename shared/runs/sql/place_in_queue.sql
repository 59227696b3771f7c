-- Return how many runs start before a queued run at most: of its own org, and of all orgs. No row if
-- the run is not queued for the service's workers.
--
-- In the turns of `fair_queue`: of each end user of the org as many as of its own, up to and with this
-- run, and of each org as many as it may start in the rounds that its own needs for those.
WITH own AS (
    SELECT org_id, coalesce(end_user_id, '') AS end_user, queued_at, id FROM runs
    WHERE id = %(run_id)s AND state IS NOT DISTINCT FROM 'queued' AND agent IS NULL
), place AS (
    SELECT own.org_id, (
        SELECT count(*) FROM runs r
        WHERE r.state = 'queued' AND r.agent IS NULL AND r.org_id = own.org_id
            AND coalesce(r.end_user_id, '') = own.end_user
            AND (r.queued_at < own.queued_at OR r.queued_at = own.queued_at AND r.id <= own.id)
    ) AS in_end_user FROM own
), in_org AS (
    SELECT place.org_id, (
        SELECT sum(least(queued, place.in_end_user)) FROM (
            SELECT count(*) AS queued FROM runs r
            WHERE r.state = 'queued' AND r.agent IS NULL AND r.org_id = place.org_id
            GROUP BY coalesce(r.end_user_id, '')
        ) AS end_users
    ) AS position, coalesce(
        (SELECT s.weight FROM org_settings s WHERE s.org_id = place.org_id), 1
    ) AS weight FROM place
)
SELECT in_org.position::integer AS position, in_org.position::integer - 1 + coalesce((
    SELECT sum(least(queued, ceil(in_org.position / in_org.weight) * coalesce(s.weight, 1))) FROM (
        SELECT r.org_id, count(*) AS queued FROM runs r
        WHERE r.state = 'queued' AND r.agent IS NULL
            AND r.org_id NOT IN (SELECT id FROM orgs WHERE suspended_at IS NOT NULL)
        GROUP BY r.org_id
    ) AS others LEFT JOIN org_settings s USING (org_id)
    WHERE others.org_id <> in_org.org_id
), 0)::integer AS ahead FROM in_org
