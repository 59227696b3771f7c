-- Correct the times of pending deliveries that are in the future since the clock was set back.
--
-- Their first attempt, the end of a lease or the next attempt would wait until it had caught up. An
-- index finds those that were created in the future. The next attempts of older ones, which have
-- failed, come late by what the clock was set back. What is replayed or being attempted has a former
-- attempt, but no pause after it. What waits for an earlier one of its run becomes due by the record of
-- that one: until then claims would read it in vain. Those of the last second are new: one that is
-- locked here would be claimed late. By `state = 'pending'` Postgres could look through the index of
-- all that are pending.
UPDATE webhook_deliveries SET
    due_at = CASE
        WHEN tried_since IS NULL OR leased_until IS NOT NULL THEN least(due_at, statement_timestamp())
        WHEN tried_at > statement_timestamp() THEN due_at - (tried_at - statement_timestamp())
        ELSE due_at END,
    leased_until = CASE
        WHEN leased_until > statement_timestamp() + %(lease)s THEN statement_timestamp() + %(lease)s
        ELSE leased_until END,
    tried_at = CASE
        WHEN tried_at > statement_timestamp() THEN statement_timestamp() ELSE tried_at END
WHERE id IN (
    SELECT d.id FROM webhook_deliveries d
    WHERE d.created_at > statement_timestamp() + interval '1 second'
        AND d.state NOT IN ('delivered', 'dead')
        AND (
            d.leased_until > statement_timestamp() + %(lease)s
            OR d.tried_at > statement_timestamp()
            OR (d.tried_since IS NULL AND d.due_at > statement_timestamp())
        )
        AND NOT EXISTS (
            SELECT FROM webhook_deliveries earlier
            WHERE earlier.endpoint_id = d.endpoint_id AND earlier.ordered_by = d.ordered_by
                AND earlier.seq < d.seq AND earlier.state NOT IN ('delivered', 'dead')
        )
    ORDER BY d.created_at LIMIT 10000
    FOR NO KEY UPDATE SKIP LOCKED
)
