-- Read a run's turns and what people answered, all of them, in order.
-- Beyond most_bytes, counted from the newest event back, of a long text or output its beginning is
-- read: no call, and no answer, may be forgotten. Postgres cuts it, so that it need not be sent.
SELECT type,
    CASE WHEN length(long) > %(most_characters)s THEN
        jsonb_set(
            payload::jsonb, path, to_jsonb(left(long, %(most_characters)s) || %(mark)s::text)
        )::text
    ELSE payload END AS payload
FROM (
    SELECT seq, type, payload, path,
        CASE WHEN size > %(most_bytes)s THEN payload::json #>> path END AS long
    FROM (
        SELECT seq, type, payload,
            CASE type
                WHEN 'tool.result' THEN '{data,output}'::text[]
                WHEN 'message.completed' THEN '{data,content}'::text[]
            END AS path,
            sum(octet_length(payload)) OVER (ORDER BY seq DESC) AS size
        FROM run_events
        WHERE run_id = %(run_id)s AND type = ANY (%(types)s)
    ) AS measured
) AS read
ORDER BY seq
