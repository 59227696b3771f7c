-- Lock a batch of the rows of `spending` of an org's end users this month, in the one order.
SELECT scope FROM spending
WHERE org_id = %(org_id)s AND scope > %(after)s AND starts_with(scope, 'end_user:')
    AND month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
ORDER BY scope LIMIT %(most)s FOR UPDATE
