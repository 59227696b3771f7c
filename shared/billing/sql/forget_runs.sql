-- Delete rows of `spending` of runs with their sub-runs, however many they are.
DELETE FROM spending USING (
    SELECT unnest((SELECT %(orgs)s::uuid[])) AS org_id,
        unnest((SELECT %(scopes)s::text[])) AS scope
) AS forgotten
WHERE spending.org_id = forgotten.org_id AND spending.scope = forgotten.scope
    AND spending.month = %(month)s
