"""A tool of the shop, for the built-in loop."""

from arkloop.tools import ToolContext, tool
from bench.frameworks import shop


@tool(idempotent=True)
def find_order(context: ToolContext, order_id: str) -> str:
    """Look up an order."""
    return shop.TOOLS["find_order"](order_id)
