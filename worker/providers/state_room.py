"""How much is gathered of what a vendor wants back with a turn."""

import json
from typing import Any

from worker.contract.messages import MAX_STATE_BYTES


class StateRoom:
    """Of one turn. What gets longer than `MAX_STATE_BYTES` is not kept: it is not gathered."""

    def __init__(self) -> None:
        self._left = MAX_STATE_BYTES

    @property
    def is_over(self) -> bool:
        return self._left < 0

    def take(self, value: Any) -> bool:
        """Whether there is room for the value, with all those before it."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self._left -= len(text)
        return not self.is_over
