"""A tool of the shop, for the built-in loop."""

from arkloop.tools import ToolContext, tool
from bench.frameworks import shop


@tool(idempotent=False)
def cancel_order(context: ToolContext, order_id: str) -> str:
    """Cancel an order. Cannot be undone."""
    return shop.TOOLS["cancel_order"](order_id)
