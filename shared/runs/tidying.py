"""Tidying up beside the sweep: the deletion of what is too old, and looks that may be late."""

import logging
from collections.abc import Callable, Mapping

from sqlalchemy import update

from arkloop.shared.billing import end_user_limits, usage_sums
from arkloop.shared.errors import Unavailable
from arkloop.shared.events import partitions
from arkloop.shared.outage_log import reason_of
from arkloop.shared.runs import retention, visible_runs, waiting_runs
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import sweep_turn

log = logging.getLogger(__name__)

#: One of all processes that sweep tidies up this often, or after each sweep while there is more.
SECONDS = 30

_TAKE_TURN = statement(__package__, "take_turn_to_tidy")

#: Each returns whether it has left something to do.
_WORK: Mapping[str, Callable[[Connections], bool]] = {
    "partitions of events": partitions.add_ahead,
    "retention": retention.forget,
    "sums of usage": usage_sums.roll_up,
    "limits of end users": end_user_limits.mark_left,
    "visibility of runs": visible_runs.correct_left,
    "runs behind deleted ones": waiting_runs.start_unblocked,
}


def tidy_in_turn(connections: Connections) -> None:
    """Call `tidy`, unless another process has done so in this period and has left nothing to do.

    A process that dies meanwhile leaves the rest to the next period.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    with connections.statement() as tx:
        taken = tx.sql.exec_driver_sql(_TAKE_TURN, {"seconds": SECONDS}).rowcount == 1
    if taken and tidy(connections):
        with connections.statement() as tx:
            tx.sql.execute(update(sweep_turn).values(tidied_at=None))


def tidy(connections: Connections) -> bool:
    """Delete what is too old, make room for events to come, sum up usage, mark end users whose
    limit is spent, write who sees the runs of a changed thread, and start runs that wait behind
    deleted ones; returns whether more is left.

    What fails is logged, and does not stop the rest.
    """
    is_left = False
    for name, work in _WORK.items():
        try:
            is_left |= work(connections)
        except Unavailable as error:
            # Also where one statement took too long, or waited for a lock: the others may not.
            log.warning("tidying up failed: %s: %s", name, reason_of(error))
        except Exception:
            log.exception("tidying up failed: %s; continuing with the rest", name)
    return is_left
