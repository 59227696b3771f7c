"""What a process holds open: database engine, Redis, Celery producer; and transactions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shared import queue
from shared.config import Settings
from shared.errors import Unavailable
from shared.hints import Hint, send_now

#: A pool that has no free connection for so long answers 503.
POOL_WAIT_SECONDS = 2
STATEMENT_TIMEOUT_MS = 15_000
LOCK_TIMEOUT_MS = 5_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000


@dataclass(slots=True)
class Transaction:
    """An open transaction; its hints are sent after the commit, and never after a rollback."""

    sql: Connection
    connections: "Connections"
    after_commit: list[Hint] = field(default_factory=list)


@dataclass(slots=True)
class Connections:
    """Built once per process by its composition root, after any fork."""

    settings: Settings
    engine: Engine
    redis: Any  # redis.Redis or fakeredis.FakeRedis, decoding responses
    enqueue: Callable[[UUID], object]  # tells the workers that a run is queued
    queue_length: Callable[[], int]  # messages that wait in the broker
    send: Callable[[Hint], None] = send_now

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Begin; commit at the end; then send the hints.

        Raises:
            Unavailable: Postgres is out of reach or its pool stays exhausted.
        """
        with database_errors(), self.engine.begin() as sql:
            tx = Transaction(sql, self)
            yield tx
        for hint in tx.after_commit:
            self.send(hint)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reads alone, in autocommit: one round trip a statement.

        Raises:
            Unavailable: as `transaction`.
        """
        with database_errors(), self.engine.connect() as sql:
            yield sql.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        self.engine.dispose()
        self.redis.close()


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn "Postgres is out of reach" into `Unavailable`; let every other error through."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise Unavailable() from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable() from error
        raise


def connect(
    settings: Settings,
    *,
    application: str,
    pool_size: int | None = None,
    send: Callable[[Hint], None] = send_now,
) -> Connections:
    """Make the engine, the Redis client and the Celery producer; nothing is opened before use."""
    size = pool_size or settings.database_pool_size
    engine = create_engine(
        settings.database_url,
        pool_size=size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        pool_use_lifo=True,
        connect_args={
            # A host that vanished without a word must not hold a connection for minutes.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            "connect_timeout": 2,
            "application_name": application,
            "prepare_threshold": 3,
        },
    )

    @event.listens_for(engine, "connect")
    def limits(connection: Any, _record: Any) -> None:
        # Set by statement, not in `options`: poolers in transaction mode refuse start-up options.
        connection.autocommit = True
        connection.execute(
            "SELECT set_config('statement_timeout', %s, false),"
            " set_config('lock_timeout', %s, false),"
            " set_config('idle_in_transaction_session_timeout', %s, false),"
            " set_config('TimeZone', 'UTC', false)",
            [str(STATEMENT_TIMEOUT_MS), str(LOCK_TIMEOUT_MS), str(IDLE_IN_TRANSACTION_TIMEOUT_MS)],
        )
        connection.autocommit = False

    celery = queue.make_celery(settings)
    return Connections(
        settings,
        engine,
        connect_redis(settings.redis_url),
        enqueue=partial(queue.enqueue, celery),
        queue_length=partial(queue.length, celery),
        send=send,
    )


def connect_redis(url: str, *, max_connections: int = 16, timeout: float = 2.0) -> Any:
    """A client that waits for a free connection, and gives up a silent server after `timeout` s.

    Retries are ours: redis-py's own would add up to a minute to every call on a dead server.
    """
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=min(timeout, 1.0),
        retry=Retry(NoBackoff(), 1),
        retry_on_error=[redis.ConnectionError],
        decode_responses=True,
    )
    return redis.Redis(connection_pool=pool)
