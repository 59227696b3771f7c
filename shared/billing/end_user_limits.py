"""The limits of each end user of an org, where very many end users have spent something.

A request must not write a row for each of them in one transaction: it would take longer than a
request may, each time that it is repeated. What they have spent is corrected in batches before the
limit is stored, and stays right from then on. That limit refuses runs at once; to note who has
spent all of it is only for webhooks: the request does so for one batch, and the sweep for the rest.
"""

import time
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select

from arkloop.shared.billing import budget_limits, spending
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.sql_files import statement

#: How long ago a run may say that it has ended whose transaction is only now committed.
LONGEST_COMMIT = timedelta(minutes=1)
#: How long the sweep looks for end users who have spent a limit that was set.
WATCHED = timedelta(hours=1)
#: A pass of the sweep ends after this time even if more is left: lost runs wait for it.
PASS_SECONDS = 1.0

#: Parameters: `watched`.
FIND_CHANGED = statement(__package__, "find_changed_end_user_limits")


def recount_ahead(connections: Connections, org_id: UUID) -> datetime | None:
    """Correct what end users have spent this month, before a month's limit of each one is set.

    Returns since when runs may have ended that are not counted: `budget_limits.set_` counts these.
    None if there is such a limit already, under which all is counted.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    with connections.reading() as sql:
        limits = budget_limits.own(sql, org_id, spending.END_USERS)
        if limits is not None and limits.max_cost_usd_per_month is not None:
            return None
        since = sql.execute(select(func.now() - LONGEST_COMMIT)).scalar_one()
    after: str | None = spending.END_USER_SCOPE
    while after is not None:
        with connections.transaction() as tx:
            after = spending.recount_some_end_users(tx.sql, org_id, after)
    return since


def mark_left(connections: Connections) -> bool:
    """Note for end users who have spent a limit of each one that was set recently that they have;
    returns whether more may be left.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    ends_at = time.monotonic() + PASS_SECONDS
    with connections.reading() as sql:
        org_ids = sql.exec_driver_sql(FIND_CHANGED, {"watched": WATCHED}).scalars().all()
    for org_id in org_ids:
        after: str | None = spending.END_USER_SCOPE
        while after is not None:
            with connections.transaction() as tx:
                after = spending.mark_end_users_exhausted(tx.sql, org_id, after)
            if time.monotonic() > ends_at:
                return True
    return False
