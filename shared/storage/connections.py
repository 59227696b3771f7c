"""The connections of a process: database engine, Redis, broker; and transactions."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from arkloop.shared import fault_points
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import OutageLog, reason_of
from arkloop.shared.storage import epoch, hosts, postgres, queue, schema
from arkloop.shared.storage.checkouts import Checkouts, NoneFree
from arkloop.shared.storage.commit_waits import commits_are_waiting
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.notifications import Notification, send_now
from arkloop.shared.storage.outage import Outage
from arkloop.shared.storage.postgres import Timeouts, make_engine

log = logging.getLogger(__name__)

SCHEMA_PAUSE_SECONDS = 1.0
#: While Postgres is silent one request a second finds out whether it still is.
POSTGRES_PAUSE_SECONDS = 1.0
REDIS_PAUSE_SECONDS = 2.0
#: A Redis that works answers in less than a thousandth of it.
REDIS_TIMEOUT_SECONDS = 1.0
REDIS_POOL_WAIT_SECONDS = 5.0


@dataclass(slots=True)
class Transaction:
    """An open transaction; `after_commit` is sent after the commit, never after a rollback.

    `last` are its last steps, which take locks that others wait for, each with the org whose lock
    it takes: all transactions take them in the same order.
    """

    sql: Connection
    connections: "Connections"
    last: list[tuple[UUID, Callable[[], None]]] = field(default_factory=list)
    after_commit: list[Notification] = field(default_factory=list)


@dataclass(slots=True)
class _Commit:
    """The commit of a transaction, or of a statement that commits itself."""

    has_begun: bool = False


@dataclass(slots=True, eq=False)
class Connections:
    """Built once per process by its composition root, after any fork."""

    settings: Settings
    engine: Engine
    checkouts: Checkouts  # of the engine's pool
    redis: Any  # redis.Redis or fakeredis.FakeRedis, decoding responses; see `has_redis`
    broker: Any  # a client of the Redis that has the queue
    enqueue: Callable[[Sequence[UUID]], object]  # tells the workers that runs are queued
    #: Tells them which MCP servers, by their configs, are to be asked for their tools.
    enqueue_discovery: Callable[[Sequence[UUID]], object]
    send: Callable[["Connections", Notification], None] = send_now
    keys: Keys = field(default_factory=Keys)
    #: Whose rows Postgres shows where row-level security is on: see `postgres.ORGS`.
    orgs: str = postgres.SERVICE
    postgres_outage: Outage = field(default_factory=lambda: Outage(POSTGRES_PAUSE_SECONDS))
    redis_outage: Outage = field(default_factory=lambda: Outage(REDIS_PAUSE_SECONDS))
    broker_outage: Outage = field(default_factory=lambda: Outage(REDIS_PAUSE_SECONDS))
    #: Of writes to a Postgres that may respond to everything else; all pools have the same.
    commit_outage: Outage = field(default_factory=lambda: Outage(POSTGRES_PAUSE_SECONDS))
    losses: dict[str, OutageLog] = field(default_factory=dict)  # of notifications, by their kind
    has_redis: bool = True  # False in commands, which know the database alone

    def of(self, *org_ids: UUID) -> "Connections":
        """Return the same for statements that work for these orgs alone."""
        return replace(self, orgs=",".join(map(str, org_ids)))

    def of_all(self) -> "Connections":
        """Return the same for statements that work for the service as a whole."""
        return self if self.orgs == postgres.SERVICE else replace(self, orgs=postgres.SERVICE)

    @contextmanager
    def transaction(self, *, writes: bool = True) -> Iterator[Transaction]:
        """Begin; commit at the end; then send the notifications.

        Args:
            writes: False for a transaction that changes no row: its commit waits for no standby.

        Raises:
            Unavailable: Postgres is out of reach or its pool stays exhausted.
        """
        with (
            self._committing() if writes else nullcontext(_Commit()) as commit,
            self._answered(),
            self.checkouts,
            self.engine.connect() as connection,
        ):
            sql = connection.execution_options(isolation_level="READ COMMITTED")
            tx = Transaction(sql, self)
            with postgres.working_for(sql, self.orgs), sql.begin():
                postgres.limit_transaction(sql, self.orgs)
                if writes:
                    self._refuse_to_wait(sql)
                yield tx
                for _, step in sorted(tx.last, key=itemgetter(0)):
                    step()
                commit.has_begun = True
        self._committed(tx)

    @contextmanager
    def statement(self) -> Iterator[Transaction]:
        """Open a transaction in autocommit mode, for exactly one writing statement.

        Saves the round trips of BEGIN and COMMIT, except through a pooler.
        """
        with self._committing() as commit, self.reading() as sql:
            self._refuse_to_wait(sql)
            tx = Transaction(sql, self)
            commit.has_begun = True
            yield tx
        assert not tx.last, "one statement has no last step"
        self._committed(tx)

    def _committed(self, tx: Transaction) -> None:
        if tx.after_commit:
            fault_points.reach("transaction.committed")
        for notification in tx.after_commit:
            self.notify(notification)
        if tx.after_commit:
            # A greenlet runs until it waits, and what it does next can wait for the sender: a
            # worker begins with a run before the client has its answer.
            time.sleep(0)

    def notify(self, notification: Notification) -> None:
        """Send the notification, in its turn and as well as possible."""
        # It may be sent together with those of other orgs.
        self.send(self.of_all(), notification)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Lend a connection for reads alone, in autocommit: one round trip per statement.

        Through a pooler a transaction, without which the statements would have no limits.

        Raises:
            Unavailable: as `transaction`.
        """
        with self._answered(), self.checkouts, self.engine.connect() as sql:
            if postgres.is_pooled(sql):
                sql.execution_options(isolation_level="READ COMMITTED")
                with sql.begin():
                    postgres.limit_transaction(sql, self.orgs)
                    yield sql
            else:
                with postgres.working_for(sql, self.orgs):
                    yield sql

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Turn "Postgres is out of reach" into `Unavailable`; let every other error through."""
        if not self.postgres_outage.may_try():
            raise Unavailable() from ConnectionError("Postgres was unavailable a moment ago")
        try:
            yield
        except DBAPIError as error:
            if postgres.is_silence(error.orig):
                self.postgres_outage.failed()
            else:
                self.postgres_outage.answered()
            if postgres.is_outage(error):
                raise Unavailable() from error
            if postgres.is_unknown_to_schema(error) and (problem := self._schema_problem()):
                raise Unavailable(problem) from None
            raise
        except NoneFree as error:
            raise Unavailable() from error
        except Unavailable:
            raise  # perhaps of another connection in the block, which has reported what it found
        except Exception:
            self.postgres_outage.answered()
            raise
        self.postgres_outage.answered()

    @contextmanager
    def _committing(self) -> Iterator[_Commit]:
        """Let one writer at a time try while commits get no response.

        Each that does not get one costs a connection of Postgres': the client closes its end, and
        a process that waits for a standby does not notice. The silence of a server that no commit
        has reached is the matter of its pool alone.
        """
        if not self.commit_outage.may_try():
            raise Unavailable() from ConnectionError("a commit had no response a moment ago")
        is_try = self.commit_outage.is_on
        commit = _Commit()
        try:
            yield commit
        except Unavailable as error:
            is_silence = postgres.is_silence(getattr(error.__cause__, "orig", None))
            if commit.has_begun and is_silence:
                self.commit_outage.failed()
            raise
        except Exception:
            # It has nothing to commit, but has found no commit that waits.
            if is_try:
                self.commit_outage.answered()
            raise
        self.commit_outage.answered()

    def _refuse_to_wait(self, sql: Connection) -> None:
        """Raise `Unavailable` while commits that had no response still wait for a standby."""
        if self.commit_outage.is_on and commits_are_waiting(sql):
            self.commit_outage.failed()
            self.postgres_outage.answered()
            raise Unavailable() from ConnectionError(
                "commits wait for a synchronous standby of Postgres"
            )

    def _schema_problem(self) -> str | None:
        with self.reading() as sql:
            return schema.shortfall(schema.current_version(sql))

    def wait_for_schema(self, stopped: threading.Event, level: int = logging.WARNING) -> None:
        """Return once Postgres answers and its schema is new enough, or at `stopped`.

        What is waited for is logged once, at `level`, however long it takes.
        """
        logged = None
        while not stopped.is_set():
            try:
                problem = self._schema_problem()
            except Unavailable as error:
                problem = hosts.failure(reason_of(error))
            if problem is None:
                return
            if problem != logged:
                log.log(level, "waiting for the database: %s", problem)
                logged = problem
            stopped.wait(SCHEMA_PAUSE_SECONDS)

    def ask_redis(self, question: Callable[[Any], Any]) -> Any:
        """Return what `question` gets from the client.

        Raises:
            redis.exceptions.RedisError: Redis is out of reach, or was a moment ago.
        """
        if not self.redis_outage.may_try():
            reason = self.redis_outage.reason
            raise redis.ConnectionError(f"Redis was unavailable a moment ago: {reason}")
        try:
            answer = question(self.redis)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self.redis_outage.failed(reason_of(error))
            # What has made this connection silent has made the idle ones so: each would have to
            # time out by itself.
            self.disconnect_redis()
            raise
        except redis.ReadOnlyError:
            self.disconnect_redis()
            raise
        self.redis_outage.answered()
        return answer

    def disconnect_redis(self) -> None:
        """Let later commands connect anew, where the address leads to by then: a server that was
        demoted keeps the connections that it has.
        """
        self.redis.connection_pool.disconnect(inuse_connections=False)

    def with_pool(self, *, application: str, size: int, timeouts: Timeouts) -> "Connections":
        """Return the same with a pool of its own; `close_pool` closes it."""
        return replace(self, **_pool(self.settings, self.keys, application, size, timeouts))

    def close(self) -> None:
        self.close_pool()
        self.redis.close()
        self.broker.close()

    def close_pool(self) -> None:
        # What a thread has just now is closed when it gives it back.
        event.listen(self.engine, "checkin", _close)
        self.engine.dispose()


def _close(connection: Any, _record: Any) -> None:
    if connection is not None:
        connection.close()


def connect(
    settings: Settings,
    *,
    application: str,
    timeouts: Timeouts = postgres.REQUEST_TIMEOUTS,
    pool_size: int | None = None,
    send: Callable[[Connections, Notification], None] = send_now,
) -> Connections:
    """Make the engine and the Redis clients; nothing is opened before use."""
    keys = Keys()
    broker, broker_outage = connect_redis(settings.broker_url), Outage(REDIS_PAUSE_SECONDS)
    enqueue = partial(queue.enqueue, broker, keys, broker_outage)
    size = pool_size or settings.database_pool_size
    return Connections(
        settings,
        redis=connect_redis(settings.redis_url),
        broker=broker,
        enqueue=partial(enqueue, queue.EXECUTE),
        enqueue_discovery=partial(enqueue, queue.DISCOVER),
        send=send,
        keys=keys,
        broker_outage=broker_outage,
        **_pool(settings, keys, application, size, timeouts),
    )


def _pool(
    settings: Settings, keys: Keys, application: str, size: int, timeouts: Timeouts
) -> dict[str, Any]:
    """Make the parts of `Connections` that belong to a pool."""
    outage = Outage(POSTGRES_PAUSE_SECONDS)
    engine = make_engine(
        settings,
        application=application,
        pool_size=size,
        timeouts=timeouts,
        outage=outage,
        on_connect=partial(epoch.learn, keys),
    )
    checkouts = Checkouts(size, timeouts.checkout, is_measured=True)
    return {"engine": engine, "checkouts": checkouts, "postgres_outage": outage}


def connect_redis(url: str) -> Any:
    """Create a client that waits for a free connection, and gives up on a silent server after 1 s.

    Retries are ours: redis-py's own would add up to a minute to every call on a dead server.
    """
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=16,
        timeout=REDIS_POOL_WAIT_SECONDS,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        # A connection that was closed while it lay idle; a time-out is not tried again.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        decode_responses=True,
    )
    return redis.Redis.from_pool(pool)  # which closes it with itself
