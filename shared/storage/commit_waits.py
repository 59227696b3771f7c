"""Commits that wait for a synchronous standby of Postgres, for as long as that is away.

Their clients give up, but the process of Postgres' stays in its wait, and its connection counts.
"""

from sqlalchemy import Connection, text

# What other roles do is not shown to this one, and need not wait for the same standbys.
_WAITS = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE wait_event = 'SyncRep' AND query_start < now() - interval '1 second'
    AND datname = current_database() AND usename = current_user
)
"""


def commits_are_waiting(sql: Connection) -> bool:
    """Return whether a commit of this role waits for longer than one does with all servers up."""
    return bool(sql.scalar(text(_WAITS)))
