"""Commits that wait for a synchronous standby of Postgres, for as long as that is away.

Their clients give up, but the process of Postgres' stays in its wait, and its connection counts.
"""

from sqlalchemy import Connection, text

# What other logins do need not wait for the same standbys. What this one does is hidden from a role
# under which it works (`ALTER ROLE … SET role`), except from a member of pg_read_all_stats.
_WAITS = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE wait_event = 'SyncRep' AND query_start < now() - interval '1 second'
    AND datname = current_database() AND usename = session_user
)
"""


def commits_are_waiting(sql: Connection) -> bool:
    """Return whether a commit of this login waits for longer than one does with all servers up."""
    return bool(sql.scalar(text(_WAITS)))
