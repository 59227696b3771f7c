"""The calls that are in progress in a worker process while their runs wait for people."""

import threading
from collections.abc import Collection

from arkloop.worker.mcp.org_sidecar import OrgSidecar


class HeldCalls:
    """The calls by their tokens; a sidecar that has one counts as in use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[OrgSidecar, str]] = {}

    @property
    def runs(self) -> dict[str, str]:
        """The runs that wait, as far as this process knows, by the tokens of their calls."""
        with self._lock:
            return {token: run_id for token, (_, run_id) in self._held.items()}

    def add(self, token: str, sidecar: OrgSidecar, run_id: str) -> None:
        with self._lock:
            self._held[token] = sidecar, run_id
            sidecar.users += 1

    def remove(self, token: str) -> None:
        """Forget a call that is being continued; does nothing if it is not here."""
        with self._lock:
            if (found := self._held.pop(token, None)) is not None:
                found[0].users -= 1

    def release(self, tokens: Collection[str]) -> None:
        """End calls whose runs do not wait for them any more."""
        with self._lock:
            found = [(token, self._held.pop(token)[0]) for token in tokens if token in self._held]
            for _, sidecar in found:
                sidecar.users -= 1
        for token, sidecar in found:
            sidecar.release(token)
