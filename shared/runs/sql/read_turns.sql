-- The next events of some runs, in the order of the runs: each from after_seq to upto_seq, without
-- the pieces of turns that were finished by turn_seq.
-- The payloads' sizes are summed before any payload is looked at, so that what is beyond most_bytes
-- is not even read from where Postgres keeps long values.
SELECT number, seq, type, payload FROM (
    SELECT number, seq, type, payload,
        sum(octet_length(payload)) OVER (ORDER BY number, seq) - octet_length(payload) AS before
    FROM unnest(
        %(ids)s::uuid[], %(after_seqs)s::bigint[], %(upto_seqs)s::bigint[], %(turn_seqs)s::bigint[]
    ) WITH ORDINALITY AS run (id, after_seq, upto_seq, turn_seq, number)
    CROSS JOIN LATERAL (
        SELECT e.seq, e.type, e.payload FROM run_events e
        WHERE e.run_id = run.id AND e.seq > run.after_seq AND e.seq <= run.upto_seq
            AND (e.seq > run.turn_seq OR e.type <> ALL (%(superfluous)s))
        ORDER BY e.seq LIMIT %(most_events)s
    ) AS event
) AS measured
WHERE before < %(most_bytes)s
ORDER BY number, seq
