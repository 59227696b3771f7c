-- Find threads of which runs may have another `visible_to` than their thread, in orgs that work: the
-- rows of one that is suspended may be copied to another cell meanwhile.
SELECT t.id FROM threads t JOIN orgs o ON o.id = t.org_id
WHERE t.runs_due_at <= now() AND o.suspended_at IS NULL
ORDER BY t.runs_due_at LIMIT %(most)s
