"""Postgres and Redis of a stack, and what can happen to them."""

import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.cli.dev.embedded_server import EmbeddedServer, ServerInUse
from chaos.journal import Journal
from chaos.system.member import KeptProcess, NotInTime, wait_until

READY_SECONDS = 30.0
STOP_SECONDS = 10.0


class Server(KeptProcess):
    """A server that stays down when it dies, until `start`."""

    def __init__(self, embedded: EmbeddedServer, journal: Journal, folder: Path) -> None:
        super().__init__(embedded.name, journal, folder / f"{embedded.name}.log")
        self._embedded = embedded

    def start(self, seconds: float = READY_SECONDS) -> None:
        """Start it on the data that is there; returns when it answers.

        Raises:
            NotInTime
        """
        wait_until(self._comes_up, seconds, f"{self.role} is ready")

    def stop(self) -> None:
        """End it in good order, by force after 10 s."""
        self.end(self._embedded.stop_signal, STOP_SECONDS)

    def command(self, life: int) -> tuple[Sequence[str], Mapping[str, str] | None, Path]:
        return self._embedded.command(), None, Path("/")

    def close(self) -> None:
        """Stop it, and remove what is not data."""
        self.stop()
        self._embedded.close()

    def _comes_up(self) -> bool:
        """Return False if it ended instead, or an earlier one has not quite ended."""
        try:
            self._embedded.prepare()
        except ServerInUse:
            return False
        self.launch()
        try:
            wait_until(self._answers_or_ended, READY_SECONDS, f"{self.role} answers")
        except NotInTime:
            self.stop()
            raise
        return self.pid is not None

    def _answers_or_ended(self) -> bool:
        pid = self.pid
        return pid is None or self._embedded.is_ready(pid)


class Postgres(Server):
    """A Postgres on a unix socket; commits survive the death of every process, not of the
    machine.
    """

    def __init__(self, journal: Journal, folder: Path) -> None:
        options = {
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": "400",
            "log_min_messages": "warning",
        }
        self._postgres = EmbeddedPostgres(folder / "postgres", options=options)
        super().__init__(self._postgres, journal, folder)

    @property
    def url(self) -> str:
        """Straight to the server, as its superuser."""
        return self._postgres.url

    @property
    def socket(self) -> Path:
        """The unix socket that it listens on."""
        return self._postgres.sockets / ".s.PGSQL.5432"

    def stop(self, immediate: bool = False) -> None:
        """Stop by a fast shutdown; `immediate` without a checkpoint, so that the next start
        recovers.
        """
        self.end(signal.SIGQUIT if immediate else signal.SIGINT, STOP_SECONDS)

    def terminate_backends(self) -> int:
        """End the session of every client; how many there were."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as sql:
                return len(
                    sql.execute(
                        text(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                        )
                    ).all()
                )
        finally:
            engine.dispose()

    def close(self) -> None:
        self.stop(immediate=True)
        self._embedded.close()


class Redis(Server):
    """A Redis on a port and with a password that it keeps over restarts."""

    def __init__(self, journal: Journal, folder: Path, *, port: int, persist: bool) -> None:
        self._redis = EmbeddedRedis(folder / "redis", port=port, persist=persist)
        self._copies = folder / "redis-copies"
        super().__init__(self._redis, journal, folder)

    @property
    def url(self) -> str:
        """Straight to the server."""
        return self._redis.url

    @property
    def port(self) -> int:
        return self._redis.port

    def client(self) -> Any:
        """Connect directly to the server; the caller closes it."""
        return redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=10)

    def restart_empty(self) -> None:
        """Restart with SIGKILL and without any data."""
        self.kill()
        self._forget()
        self.start()

    def config_set(self, **settings: str) -> None:
        """Set options, such as `maxmemory="1mb"`; an underscore stands for a dash. A restart
        forgets them.
        """
        with self.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), value)

    def copy(self) -> Path:
        """Copy what is on its disk now, for `travel_back`."""
        copy = self._copies / str(len(list(self._copies.glob("*"))))
        shutil.copytree(self._redis.data, copy)
        return copy

    def travel_back(self, copy: Path) -> None:
        """Restart with SIGKILL and the data of an earlier time."""
        self.kill()
        self._forget()
        shutil.copytree(copy, self._redis.data, dirs_exist_ok=True)
        self.start()

    def _forget(self) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self._redis.data)
