-- Give a batch of the ended runs of a thread this `visible_to`: the newest of those up to a position.
-- Rows that have it are not written.
--
-- Returns the first position of the batch; null if there is no run.
WITH batch AS (
    SELECT min(newest.position) AS since FROM (
        SELECT position FROM runs WHERE thread_id = %(thread_id)s AND position <= %(upto)s
        ORDER BY position DESC LIMIT %(most)s
    ) AS newest
), corrected AS (
    UPDATE runs r SET visible_to = %(visible_to)s::uuid FROM batch
    WHERE r.thread_id = %(thread_id)s AND r.position >= batch.since AND r.position <= %(upto)s
        AND r.ended_at IS NOT NULL AND r.visible_to IS DISTINCT FROM %(visible_to)s::uuid
)
SELECT since FROM batch
