"""Tools that workers of the customer execute, as tools of a run.

The call waits in a queue; the run waits for its result as for any slow tool. The queue has a place
for each call of the run once: an attempt that takes over from a lost process finds the call there.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from arkloop.shared.catalog.personas import BUILTIN_TOOLS
from arkloop.shared.catalog.worker_tools import parameters_of
from arkloop.shared.runs import worker_calls
from arkloop.shared.runs.worker_calls import MAX_HANDOUTS, Call
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.attachments import ToolOutput
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.outcomes import ShuttingDown, StopRun, TimeToLand
from arkloop.worker.mcp.tools import model_names
from arkloop.worker.process.worker_calls import WorkerCalls
from arkloop.worker.tools import CallInfo, Tool, ToolFailed

log = logging.getLogger(__name__)

#: The call itself notices that its time is over; this is for one that does not.
_SLACK_SECONDS = 60.0


def tools_of(
    calls: WorkerCalls, run: ClaimedRun, rows: Collection[Row[Any]], reserved: Collection[str]
) -> tuple[dict[str, Tool], dict[str, frozenset[str]]]:
    """Make tools of what workers have registered; `reserved` are names of other tools.

    Returns them by the names that the model reads, and what else each is known by. Left out are
    those whose schema vendors refuse, and with it the whole request.
    """
    described = []
    for row in rows:
        if (parameters := parameters_of(row)) is None:
            log.warning("tool %r of pool %r is left out: no object schema", row.name, row.pool)
        else:
            described.append((row, parameters))
    pairs = [(row.pool, row.name) for row, _ in described]
    names = model_names(pairs, {*reserved, *BUILTIN_TOOLS})
    tools = {
        name: Tool(
            spec=ToolSpec(name, row.description, parameters),
            function=_caller(calls, run, row),
            # The queue sees to it that the worker is not called twice.
            idempotent=True,
            timeout_seconds=(MAX_HANDOUTS + 1) * row.timeout_seconds + _SLACK_SECONDS,
            worker_tool={"pool": row.pool, "name": row.name},
        )
        for name, (row, parameters) in zip(names, described, strict=True)
    }
    also_named = {
        name: frozenset({row.name, f"{row.pool}_{row.name}"}) - {name}
        for name, (row, _) in zip(names, described, strict=True)
    }
    return tools, also_named


def _caller(
    calls: WorkerCalls, run: ClaimedRun, tool: Row[Any]
) -> Callable[[ToolContext, CallInfo, Mapping[str, Any]], str | ToolOutput]:
    def make(
        context: ToolContext, info: CallInfo, arguments: Mapping[str, Any]
    ) -> str | ToolOutput:
        claim = run.claim
        call = Call(
            run_id=claim.run_id,
            tool_call_id=info.tool_call_id,
            org_id=claim.org_id,
            pool=tool.pool,
            tool=tool.name,
            request={"arguments": arguments, **info.wire()},
            idempotent=tool.idempotent,
            timeout_seconds=tool.timeout_seconds,
        )
        add = calls.connections.statement
        call_id = run.write(add, lambda tx: worker_calls.add(tx, call, fence=claim.fence))
        try:
            return _result(_ended(calls, run, context, call_id), tool)
        except ShuttingDown:
            raise  # the next attempt waits for it
        except TimeToLand:
            if not _withdraw(calls, run, call_id):
                raise  # the run's last call reads that it may have taken effect
            raise ToolFailed(
                f"Not executed: the run's time was over before a worker of pool {tool.pool!r}"
                " fetched the call."
            ) from None
        except StopRun:
            _withdraw(calls, run, call_id)
            raise

    return make


def _ended(calls: WorkerCalls, run: ClaimedRun, context: ToolContext, call_id: UUID) -> Row[Any]:
    """Return the call's row once it has ended, or its time is over."""
    with calls.waiting(call_id, run.claim.run_id) as news:
        is_late = False
        while True:
            news.clear()
            row = run.write(
                calls.connections.statement, lambda tx: worker_calls.find(tx.sql, call_id)
            )
            if is_late or row.state not in ("queued", "leased"):
                return row
            if row.seconds_left > 0:
                with context.aborting(news.set):
                    news.wait(float(row.seconds_left))
                    context.check()
            else:
                _withdraw(calls, run, call_id)
                is_late = True


def _withdraw(calls: WorkerCalls, run: ClaimedRun, call_id: UUID) -> bool:
    claim = run.claim
    return run.write(
        calls.connections.statement,
        lambda tx: worker_calls.withdraw(tx, call_id, run_id=claim.run_id, fence=claim.fence),
    )


def _result(row: Row[Any], tool: Row[Any]) -> str | ToolOutput:
    """Return the result of a call. Raises: ToolFailed: it has failed, or has none."""
    if row.state == "done":
        if row.is_error:
            raise ToolFailed(row.output)
        return ToolOutput(row.output, row.images) if row.images else str(row.output)
    seconds = f"{tool.timeout_seconds:g} s"
    if row.state == "withdrawn" and not row.fence:
        raise ToolFailed(
            f"No worker of pool {tool.pool!r} is connected, or all are busy: the call was not"
            f" fetched within {seconds}. It was withdrawn and has had no effect."
        )
    if row.state in ("unknown", "withdrawn"):  # one that was fetched, and queued again
        raise ToolFailed(
            f"The worker of pool {tool.pool!r} that made this call was lost. The call may or may"
            " not have taken effect, and was not repeated."
            if not tool.idempotent
            else f"The workers of pool {tool.pool!r} that made this call were lost, {row.fence} in"
            " a row. It may or may not have taken effect."
        )
    raise ToolFailed(
        f"The worker of pool {tool.pool!r} did not finish within {seconds} and was asked to stop;"
        " the call may still take effect."
    )
