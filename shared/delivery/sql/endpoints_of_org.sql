-- The endpoints of an org that deliveries are for, deleted ones, too: one look into an index for each
-- endpoint of the installation.
WITH RECURSIVE step AS (
    (SELECT endpoint_id, org_id FROM webhook_deliveries ORDER BY endpoint_id LIMIT 1)
    UNION ALL
    SELECT next.endpoint_id, next.org_id FROM step CROSS JOIN LATERAL (
        SELECT endpoint_id, org_id FROM webhook_deliveries
        WHERE endpoint_id > step.endpoint_id ORDER BY endpoint_id LIMIT 1
    ) AS next
)
SELECT endpoint_id FROM step WHERE org_id = %(org_id)s
