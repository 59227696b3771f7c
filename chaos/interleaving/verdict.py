"""The verdict on a thread in which everything has ended: what became of each message."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg import Cursor

_RUNS = """
SELECT r.id, r.state, r.position, r.superseded_by, r.superseded_at IS NOT NULL AS is_discarded,
    r.cancel_requested_at IS NOT NULL AS was_cancelled, r.attempt,
    (SELECT count(*) FROM run_events e WHERE e.run_id = r.id
        AND e.type IN ('run.completed', 'run.failed', 'run.cancelled')) AS ends,
    (SELECT e.payload::jsonb #>> '{data,superseded_by}' FROM run_events e
        WHERE e.run_id = r.id AND e.type = 'run.cancelled') AS named
FROM runs r WHERE r.thread_id = %s ORDER BY r.position
"""
_MESSAGES = """
SELECT role, content, position, run_id, superseded_at IS NOT NULL AS is_gone,
    ARRAY(SELECT e.run_id FROM run_events e JOIN runs r ON r.id = e.run_id
        WHERE r.thread_id = m.thread_id AND e.type = 'run.steered'
        AND e.payload::jsonb #>> '{data,message_id}' = m.id::text) AS delivered_to
FROM messages m WHERE thread_id = %s ORDER BY position
"""


def verdict(
    cursor: Cursor[Any], thread_id: UUID, accepted: Mapping[str, tuple[UUID, UUID]]
) -> list[str]:
    """Return what is wrong; `accepted` are messages and the runs that clients were given for them:
    that which has the message, and for one that steers that which it becomes otherwise.

    Messages whose client crashed may be there, too.
    """
    runs = cursor.execute(_RUNS, (thread_id,)).fetchall()
    messages = cursor.execute(_MESSAGES, (thread_id,)).fetchall()
    faults = [
        f"one end: run {run.id} is {run.state} and has {run.ends} last events"
        for run in runs
        if run.ends != 1 or run.state not in ("completed", "failed", "cancelled")
    ]
    ids = {run.id for run in runs}
    for run in runs:
        if run.superseded_by is not None:
            if run.state != "cancelled":
                faults.append(f"what is superseded is reported: run {run.id} is {run.state}")
            if run.superseded_by not in ids:
                faults.append(f"what is superseded is reported: there is no {run.superseded_by}")
        if run.state == "cancelled" and not run.was_cancelled and run.superseded_by is None:
            faults.append(f"one run for each message: {run.id} was cancelled without a request")
    by_text: dict[str, list[Any]] = defaultdict(list)
    for message in messages:
        if message.role == "user":
            by_text[message.content].append(message)
        elif message.run_id in ids and not message.is_gone:
            run = next(run for run in runs if run.id == message.run_id)
            if run.is_discarded:
                faults.append(f"rollback removes output: {run.id} is shown")
    for text, found in by_text.items():
        if len(found) > 1:
            faults.append(f"one run for each message: {text!r} is there {len(found)} times")
    of_id = {run.id: run for run in runs}
    for text, (given, fallback) in accepted.items():
        if text not in by_text:
            faults.append(f"one run for each message: {text!r} is lost")
            continue
        message = by_text[text][0]
        run_id = given
        if given != fallback:
            if len(message.delivered_to) + (fallback in of_id) != 1:
                faults.append(f"one run for each message: {text!r} is delivered and a run, or none")
                continue
            if message.delivered_to not in ([], [given]):
                faults.append(f"one run for each message: {text!r} is delivered to another run")
            if fallback in of_id:
                run_id = fallback
        run = of_id[run_id]
        # Of a run that was withdrawn the message is, too; one that superseded it has taken it.
        answered = next((r for r in runs if r.position > message.position), None)
        if message.is_gone:
            if run.state != "cancelled" or run.attempt:
                faults.append(f"one run for each message: {text!r} is gone, {run.state}")
        elif answered is None:
            faults.append(f"one run for each message: no run has {text!r}")
        elif answered.id != run_id and not _leads_to(of_id, run_id, answered.id):
            faults.append(f"one run for each message: {text!r} belongs to another run")
    return faults


def _leads_to(runs: Mapping[UUID, Any], run_id: UUID, successor: UUID) -> bool:
    """Return whether one run was superseded by the other, perhaps by way of others."""
    seen = set()
    while (run := runs.get(run_id)) is not None and run_id not in seen:
        seen.add(run_id)
        if run.superseded_by == successor:
            return True
        run_id = run.superseded_by
    return False
