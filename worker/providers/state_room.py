"""The limit on how much of a vendor's state for a turn is gathered."""

import json
from typing import Any

from worker.contract.messages import MAX_STATE_BYTES


class StateRoom:
    """The room for one turn's state; nothing longer than `MAX_STATE_BYTES` is gathered."""

    def __init__(self) -> None:
        self._left = MAX_STATE_BYTES

    @property
    def is_over(self) -> bool:
        return self._left < 0

    def take(self, value: Any) -> bool:
        """Return whether there is room for the value in addition to all before it."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self._left -= len(text)
        return not self.is_over
