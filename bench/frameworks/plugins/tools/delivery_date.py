"""A tool of the shop, for the built-in loop."""

from arkloop.tools import ToolContext, tool
from bench.frameworks import shop


@tool(idempotent=True)
def delivery_date(context: ToolContext, order_id: str) -> str:
    """Look up the day on which an order arrives."""
    return shop.TOOLS["delivery_date"](order_id)
