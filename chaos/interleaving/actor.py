"""An actor of an interleaving: it stops before each statement and each commit, and after it, until
it is its turn again.

Actors are greenlets, each with sessions of its own. One that waits for a lock in Postgres gives its
turn away, too.
"""

import select
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any

import greenlet
from sqlalchemy import Connection, event

from arkloop.shared.errors import Unavailable
from arkloop.shared.storage.checkouts import Patience
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.notifications import Notification
from arkloop.shared.storage.postgres import Timeouts

#: An actor that waits for one that has stopped must not give up.
PATIENT = Timeouts(lock=50, statement=55, answer=60, checkout=Patience(60, 60))
#: The places of a stop. After the first three, locks may be free, and something committed.
STATEMENT, COMMIT, ROLLBACK = "statement", "commit", "rollback"
WITHIN, COMMITTED, PAUSE, READ = "within", "committed", "pause", "read"
FREES_LOCKS = frozenset({STATEMENT, COMMIT, ROLLBACK})
#: Milliseconds until Postgres is asked whether a statement waits for a lock.
SOON = 4
#: Seconds in which a statement that waits for no lock is answered on any machine.
LATE = 50.0
_WAITS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = %s AND wait_event_type = 'Lock' AND cardinality(pg_blocking_pids(pid)) > 0
"""


class Crashed(BaseException):
    """The actor's process is gone: what it has not committed is rolled back."""


class Hangs(Exception):
    """A statement is not answered though it waits for no lock."""


class Actor:
    """A process of the service; what it notifies others of is lost."""

    def __init__(self, name: str, connections: Connections, observer: Connection) -> None:
        """Use a pool of its own, whose sessions are known by the name; `observer` sees locks."""
        pool = connections.with_pool(application=name, size=2, timeouts=PATIENT)
        self.name = name
        self.connections = replace(pool, send=self._notified)
        self.does: Any = None  # for the trace
        self.at = ""
        self.is_blocked = False
        self.error: BaseException | None = None
        self._observer = observer
        self._crashes = False
        self._scheduler = greenlet.getcurrent()
        self._greenlet: Any = None
        self._listen()

    @property
    def is_done(self) -> bool:
        return self._greenlet is None or bool(self._greenlet.dead)

    def _listen(self) -> None:
        engine = self.connections.engine

        @event.listens_for(engine, "connect")
        def connect(connection: Any, _record: Any) -> None:
            connection.wait = partial(self._wait, connection, connection.wait)

        @event.listens_for(engine, "before_cursor_execute")
        def before(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
            if _is_open(connection):
                self._stop(WITHIN)
            else:
                self._stop(READ if _only_reads(statement) else STATEMENT)

        @event.listens_for(engine, "commit")
        def commit(connection: Connection) -> None:
            if _is_open(connection):
                self._stop(COMMIT)

        @event.listens_for(engine, "rollback")
        def rollback(connection: Connection) -> None:
            if not self._crashes and _is_open(connection):
                self._stop(ROLLBACK)

        @event.listens_for(engine, "rollback_savepoint")
        def rollback_savepoint(_connection: Connection, *_: Any) -> None:
            if not self._crashes:
                self._stop(ROLLBACK)

    def begin(self, task: Callable[[], None]) -> None:
        """Start the task, up to its first stop."""
        self.error, self._crashes, self.is_blocked = None, False, False
        self._greenlet = greenlet.greenlet(partial(self._play, task))
        self._scheduler = greenlet.getcurrent()
        self.go()

    def go(self, *, crash: bool = False) -> None:
        """Pass the stop, or crash there; return at the next one, or where it waits for a lock."""
        self._crashes = crash
        self.is_blocked = False
        self._greenlet.switch()

    def pause(self) -> None:
        """Stop until others have done something: what this one needs is locked."""
        self._stop(PAUSE)

    def _notified(self, _connections: Connections, _notification: Notification) -> None:
        self._stop(COMMITTED)

    def _stop(self, at: str) -> None:
        if greenlet.getcurrent() is not self._greenlet:
            return
        self.at = at
        self._scheduler.switch()
        if self._crashes:
            raise Crashed()

    def _play(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Crashed:
            pass
        except Unavailable as error:
            self.error = error.__cause__ or error  # what Postgres said
        except BaseException as error:
            self.error = error

    def _wait(
        self, connection: Any, wait: Callable[..., Any], gen: Generator[Any, Any, Any], *how: Any
    ) -> Any:
        """Wait for the response to a statement as psycopg does, without the other actors."""
        if greenlet.getcurrent() is not self._greenlet:
            return wait(gen, *how)
        poll = select.poll()
        began = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                poll.register(connection.pgconn.socket, _POLL[wanted])
                while not (ready := poll.poll(SOON)):
                    if self._observer.exec_driver_sql(_WAITS, (self.name,)).scalar_one():
                        self.is_blocked = True
                        self._scheduler.switch()
                        began = time.monotonic()
                    elif time.monotonic() > began + LATE:
                        raise Hangs(self.name)
                self.is_blocked = False
                flags = ready[0][1]
                is_readable = bool(flags & ~select.POLLOUT)
                wanted = gen.send(is_readable * 1 + bool(flags & select.POLLOUT) * 2)
        except StopIteration as done:
            return done.value


_POLL = {1: select.POLLIN, 2: select.POLLOUT, 3: select.POLLIN | select.POLLOUT}


def _only_reads(statement: str) -> bool:
    return statement.lstrip().startswith("SELECT") and " FOR " not in statement


def _is_open(connection: Connection) -> bool:
    """Return whether it is in a transaction of Postgres, which it is not in autocommit mode."""
    return connection.get_execution_options().get("isolation_level") == "READ COMMITTED"
