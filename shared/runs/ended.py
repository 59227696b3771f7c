"""The ends of runs that no worker of the service has counted: for the metrics and the log."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self
from uuid import UUID

from sqlalchemy import RowMapping

from arkloop.shared import metrics
from arkloop.shared.runs.states import RunState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended in a transaction of this process, which counts it after the commit."""

    kind: ClassVar[str] = "log"
    subject: UUID
    org_id: UUID
    trace_id: str
    route_id: str
    state: RunState
    code: str | None

    @classmethod
    def of(cls, run: RowMapping, state: RunState, code: str | None = None) -> Self:
        """Build it from the run's row; `code` is the error code if the run failed."""
        return cls(run["id"], run["org_id"], run["trace_id"], run["route_id"], state, code)

    @staticmethod
    def send(_connections: Any, group: "Sequence[Ended]") -> None:
        """Count the runs, and log those that failed."""
        for one in group:
            metrics.RUNS_ENDED.add(1, one.state, one.code or "")
            if one.code is None:
                continue
            extra = {
                "run_id": str(one.subject),
                "org_id": str(one.org_id),
                "trace_id": one.trace_id,
                "outcome": "failed",
                "error_code": one.code,
                "route_id": one.route_id,
            }
            log.warning("run failed: %s, route %s", one.code, one.route_id, extra=extra)
