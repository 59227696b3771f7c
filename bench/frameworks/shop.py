"""The tools of `examples/agents`; the one that may be called once waits after its effect."""

import os
import time
from functools import wraps
from pathlib import Path

from examples.agents import _shop

#: While this file exists, `cancel_order` does not return.
PAUSE = Path(os.environ.get("SHOP_PAUSE", "shop-pause"))
_cancel_order = _shop.TOOLS["cancel_order"]


@wraps(_cancel_order)
def cancel_order(order_id: str) -> str:
    """Cancel an order. Cannot be undone."""
    output = _cancel_order(order_id)
    while PAUSE.exists():
        time.sleep(0.02)
    return output


_shop.TOOLS["cancel_order"] = cancel_order
TOOLS = _shop.TOOLS
