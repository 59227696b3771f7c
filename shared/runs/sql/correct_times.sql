-- Set the times of workers and queued runs that are in the future to the present.
--
-- They are of a clock that was set back since, or that was ahead in the Postgres before a failover.
-- Until it had caught up, a worker that died would count as heard, and one that is heard as started or
-- back just now, by which others cannot be judged; and a queued run whose message is lost would not be found.
--
-- `clock_timestamp()`: a heartbeat may have come since this transaction began. A row that is locked is
-- being renewed, or claimed. Runs are found by `statement_timestamp()`, with which Postgres uses an
-- index. Those of the last second are new: one that is locked here would be claimed late.
WITH ahead AS (
    SELECT id FROM runs WHERE state = 'queued' AND queued_at > statement_timestamp() + interval '1 second'
    ORDER BY queued_at LIMIT 10000
    FOR NO KEY UPDATE SKIP LOCKED
), queued AS (
    UPDATE runs r SET queued_at = clock_timestamp() FROM ahead WHERE r.id = ahead.id
)
UPDATE workers SET started_at = least(started_at, clock_timestamp()),
    seen_at = least(seen_at, clock_timestamp()),
    back_at = CASE WHEN back_at > clock_timestamp() THEN clock_timestamp() ELSE back_at END
WHERE id IN (
    SELECT id FROM workers WHERE started_at > clock_timestamp()
        OR seen_at > clock_timestamp() OR back_at > clock_timestamp()
    FOR UPDATE SKIP LOCKED
)
