-- Take the turn to tidy up, if no process has begun to in the last `seconds`, or the last one has
-- left something to do, for which it has set the time to null. As in `take_turn.sql`, the clock may
-- have been set back.
UPDATE sweep_turn SET tidied_at = clock_timestamp()
WHERE tidied_at IS NULL
    OR tidied_at > clock_timestamp()
    OR tidied_at < clock_timestamp() - make_interval(secs => %(seconds)s)
