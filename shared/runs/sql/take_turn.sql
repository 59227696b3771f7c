-- Take the turn to sweep, if no process had it in the last `seconds`.
--
-- The clock may have been set back since the last one. `clock_timestamp()`, since a transaction that
-- waited for the row began before the turn that it finds there.
UPDATE sweep_turn SET swept_at = clock_timestamp()
WHERE swept_at IS NULL
    OR swept_at > clock_timestamp()
    OR swept_at < clock_timestamp() - make_interval(secs => %(seconds)s)
