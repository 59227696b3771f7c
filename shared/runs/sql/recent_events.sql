-- Read the newest events of a run, with the payloads of those that say where it is. Of tool calls and
-- results only the call's id and name, with which their data begin: the rest may be long.
SELECT type, left(right(payload, 26), 24) AS created_at,
    CASE WHEN type IN ('tool.call', 'tool.result') THEN '{"data":' || substring(
            payload FROM '"data":(\{"tool_call_id":"(?:[^"\\]|\\.)*","name":"(?:[^"\\]|\\.)*")'
        ) || '}}'
        WHEN type IN ('run.throttled', 'run.retrying', 'run.limit_reached') THEN payload
    END AS payload
FROM (
    SELECT seq, type, payload FROM run_events
    WHERE run_id = %(run_id)s ORDER BY seq DESC LIMIT %(limit)s
) AS newest
ORDER BY seq DESC
