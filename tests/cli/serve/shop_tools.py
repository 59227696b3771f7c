"""Tools as a customer writes them; what they do is written to a file, one line per step."""

import asyncio
import logging
import os
import time
from pathlib import Path

from arkloop.tools import CallInfo, ToolContext, ToolFailed, ToolOutput, tool

STEPS = Path(os.environ["STEPS"])
IMAGE = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"  # a transparent GIF


def _note(step: str) -> None:
    with STEPS.open("a") as file:
        file.write(f"{step}\n")


@tool(idempotent=True)
def find_order(context: ToolContext, number: str, info: CallInfo) -> str:
    """Return the state of an order."""
    if number == "secret":
        raise ValueError("postgres://user:password@db")
    if number == "0":
        raise ToolFailed("There is no order 0.")
    return f"{number} of {info.end_user_id} is on its way"


@tool(idempotent=True)
async def count_stock(context: ToolContext, item: str) -> str:
    """Count the pieces in stock."""
    await asyncio.sleep(0)
    return f"7 {item}"


@tool(idempotent=False)
def ship(context: ToolContext, seconds: float) -> str:
    """Send an order, which takes some seconds."""
    _note("ship")
    try:
        context.wait(seconds)
    except BaseException as reason:
        _note(type(reason).__name__)
        raise
    _note("shipped")
    return "shipped"


@tool(idempotent=True)
def pack(context: ToolContext, seconds: float) -> str:
    """Prepare an order, deaf to everything for some seconds."""
    _note(f"pack {os.getpid()}")
    time.sleep(seconds)
    return f"packed by {os.getpid()}"


@tool(idempotent=False)
async def restock(context: ToolContext, seconds: float) -> str:
    """Order more pieces, which takes some seconds."""
    _note("restock")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        _note("CancelledError")
        raise
    return "restocked"


@tool(idempotent=True)
def explain(context: ToolContext, number: str) -> str:
    """Fail with an explanation that is longer than any other."""
    raise ToolFailed(number * 65_537)


@tool(idempotent=True)
def draw(context: ToolContext, count: int) -> ToolOutput:
    """Return images of one pixel."""
    return ToolOutput("images", [IMAGE] * count)


@tool(idempotent=True)
def parse(context: ToolContext) -> str:
    """End as a program does that does not know an option."""
    raise SystemExit(2)


@tool(idempotent=True)
async def parse_later(context: ToolContext) -> str:
    """End in the same way, in the event loop."""
    raise SystemExit(2)


@tool(idempotent=True)
async def parse_many(context: ToolContext) -> str:
    """End in the same way, in tasks of its own."""

    async def parse_one() -> str:
        raise SystemExit(2)

    return " ".join(await asyncio.gather(parse_one(), parse_one()))


@tool(idempotent=True)
def talk(context: ToolContext, lines: int) -> str:
    """Log as many lines."""
    for number in range(lines):
        logging.getLogger(__name__).info("line %d of many about one order", number)
    return "talked"
