"""Commits that wait for a synchronous standby of Postgres, for as long as that is away.

Their clients give up, but the process of Postgres' stays in its wait, and its connection counts.
"""

from contextlib import suppress

import psycopg
from sqlalchemy import Connection, text

from arkloop.shared.storage.postgres import BoundedConnection, ServerSilent, connection_args

#: Seconds. A standby that works confirms a commit in a hundredth of one.
_PATIENCE = 5.0
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


class StandbyLost(Exception):
    """A synchronous standby that confirms no commit; the message is what to do, in one line."""


def require_confirmation(sql: Connection) -> None:
    """Find out whether commits wait for a standby, before tables are locked until one is over.

    Raises:
        StandbyLost: they do.
    """
    names = sql.scalar(text("SELECT current_setting('synchronous_standby_names')"))
    url = sql.engine.url.render_as_string(hide_password=False)
    if names and not _is_confirmed(url):
        raise StandbyLost(
            "commits wait for a synchronous standby, and would keep tables locked:"
            f" synchronous_standby_names is {names!r}. Start the standby; or, to continue without"
            " it, ALTER SYSTEM SET synchronous_standby_names = '', then SELECT pg_reload_conf()."
            " The schema stays as it is."
        )


def _is_confirmed(url: str) -> bool:
    """Commit a message that nobody reads, which locks nothing; return False if that has to wait."""
    # Without a free connection, for example, it cannot be found out.
    with (
        suppress(psycopg.Error),
        BoundedConnection.connect(**connection_args(url), autocommit=True) as trial,
    ):
        trial.answer_seconds = _PATIENCE
        cancel = trial.pgconn.get_cancel()
        try:
            trial.execute("SELECT pg_logical_emit_message(true, 'arkloop', '')")
        except ServerSilent:
            # Otherwise its process and connection stay until a standby confirms the message.
            with suppress(psycopg.Error):
                cancel.cancel()
            return False
    return True
