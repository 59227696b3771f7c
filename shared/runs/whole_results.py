"""The results of sub-runs whole, where their events have only a part."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import Connection, func, select

from arkloop.shared.events.tool_output import MAX_KEPT_CHARACTERS
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.storage.tables.runs import tool_calls

#: Of all that are read at once.
MAX_CHARACTERS = MAX_KEPT_CHARACTERS


def read(sql: Connection, run_id: UUID, call_ids: Collection[str]) -> dict[str, str]:
    """Return the outputs of these calls of `delegate`, the newest up to 8 Mi characters together.

    An output of which only a part is kept is left out, too.
    """
    output = func.coalesce(tool_calls.c.whole_output, tool_calls.c.output)
    newest = tool_calls.c.done_at.desc(), tool_calls.c.tool_call_id
    sized = (
        select(
            tool_calls.c.tool_call_id,
            func.length(output).label("characters"),
            func.sum(func.length(output)).over(order_by=newest).label("sum"),
        )
        .where(
            tool_calls.c.run_id == run_id,
            tool_calls.c.tool_call_id.in_(call_ids),
            tool_calls.c.result_from == ResultSource.RUN,
            tool_calls.c.done_at.is_not(None),
        )
        .subquery()
    )
    rows = sql.execute(
        select(tool_calls.c.tool_call_id, output.label("output"))
        .join(sized, sized.c.tool_call_id == tool_calls.c.tool_call_id)
        .where(
            tool_calls.c.run_id == run_id,
            sized.c.sum <= MAX_CHARACTERS,
            sized.c.characters < MAX_KEPT_CHARACTERS,
        )
    )
    return {row.tool_call_id: row.output for row in rows}
