"""The results of a thread's tool calls, whole, as they are stored."""

import re

from sqlalchemy import Connection, select

from arkloop.shared.claim import Claim
from arkloop.shared.events import event_log
from arkloop.shared.events.types import ToolResult
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import runs, tool_calls

_RESULT_ID = re.compile(r"(\d{1,18})\.(\d{1,18})")


def find(sql: Connection, claim: Claim, result_id: str) -> str | None:
    """Return the whole output of a tool result in the run's thread, up to this run.

    `result_id` is the run's position and the event's number, as `12.34`.
    """
    if (found := _RESULT_ID.fullmatch(result_id)) is None or int(found[1]) > claim.position:
        return None
    row = sql.execute(
        select(runs.c.id, run_events.c.payload)
        .join(run_events, run_events.c.run_id == runs.c.id)
        .where(
            runs.c.thread_id == claim.thread_id,
            runs.c.position == int(found[1]),
            runs.c.superseded_at.is_(None),
            run_events.c.seq == int(found[2]),
            run_events.c.type == ToolResult.type,
        )
    ).one_or_none()
    if row is None:
        return None
    data = event_log.data_of(row.payload)
    whole = sql.scalar(
        select(tool_calls.c.whole_output).where(
            tool_calls.c.run_id == row.id, tool_calls.c.tool_call_id == data["tool_call_id"]
        )
    )
    return str(whole or data["output"])
