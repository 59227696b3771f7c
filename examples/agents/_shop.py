"""The shop whose orders the agents of this folder look after: three tools, as plain functions."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arkloop.agents import AgentRun

from . import _call_ids

#: Cancelled orders, one a line: what a repeated call would do twice.
CANCELLED = Path(os.environ.get("SHOP_CANCELLED", "cancelled-orders.txt"))
ORDERS = {"A1": ("tea", "2026-12-03"), "B2": ("cup", "2026-12-10")}


def find_order(order_id: str) -> str:
    """Look up an order."""
    article, _ = ORDERS[order_id]
    return f"Order {order_id}: one {article}."


def delivery_date(order_id: str) -> str:
    """Look up the day on which an order arrives."""
    _, day = ORDERS[order_id]
    return day


def cancel_order(order_id: str) -> str:
    """Cancel an order. Cannot be undone."""
    with CANCELLED.open("a") as file:
        file.write(f"{order_id}\n")
    return f"Order {order_id} is cancelled."


TOOLS = {tool.__name__: tool for tool in (find_order, delivery_date, cancel_order)}
#: Calling them twice does no harm.
IDEMPOTENT = {"find_order", "delivery_date"}


def denial(run: AgentRun, name: str, arguments: Any, call_id: str) -> str | None:
    """Return the tool's result if a person does not allow the call; None if it may be made.

    A person is asked before what cannot be undone, where the run's metadata have `confirm`: about
    each call, by its id. Within a step this comes first: with the answer the step is made again
    from its beginning.
    """
    if name in IDEMPOTENT or "confirm" not in run.metadata:
        return None
    question = f"Shall I call {name} with {arguments}?"
    reply = run.ask(question, ["yes", "no"], key=_call_ids.recorded(call_id))
    return None if reply == "yes" else f"The customer does not allow it: {reply}"


class Steps:
    """The steps of a run, which are made one after the other.

    Frameworks make the calls of a turn side by side. A step that asks a person ends this execution,
    and another one that is in progress then would be lost.
    """

    def __init__(self, run: AgentRun) -> None:
        self._run = run
        self._lock = threading.Lock()

    def make(self, name: str, arguments: Any, function: Callable[[], str], call_id: str) -> str:
        """Make the call once no other one is in progress.

        Raises:
            RunStopped: the run has to stop; the call has not begun.
        """
        recorded = _call_ids.recorded(call_id)
        with self._lock:
            return self._run.step(
                name, arguments, function, tool_call_id=recorded, idempotent=name in IDEMPOTENT
            )
