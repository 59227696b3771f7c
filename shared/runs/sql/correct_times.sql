-- Set the times of workers that are in the future to the present.
--
-- They are of a clock that was set back since, or that was ahead in the Postgres before a failover.
-- Until it had caught up, a worker that died would count as heard, and one that is heard as back just
-- now, by which others cannot be judged.
--
-- `clock_timestamp()`: a heartbeat may have come since this transaction began. A row that is locked is
-- being renewed.
UPDATE workers SET seen_at = least(seen_at, clock_timestamp()),
    back_at = CASE WHEN back_at > clock_timestamp() THEN clock_timestamp() ELSE back_at END
WHERE id IN (
    SELECT id FROM workers WHERE seen_at > clock_timestamp() OR back_at > clock_timestamp()
    FOR UPDATE SKIP LOCKED
)
