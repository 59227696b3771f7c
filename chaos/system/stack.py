"""The real system under test: Postgres, Redis, gunicorn and Celery, with proxies between them."""

import secrets
import signal
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from sqlalchemy import create_engine, exists, select

from arkloop.cli.dev.dev import path_of_children, read_procfile
from arkloop.shared.accounts import accounts, api_keys
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.storage import schema
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.tables.runs import workers as workers_table
from chaos.journal import Journal
from chaos.system.fault_proxy import FaultProxy
from chaos.system.member import READY_SECONDS, Member
from chaos.system.ports import quiet_port
from chaos.system.servers import Postgres, Redis

ROOT = Path(__file__).parents[2]

#: A dead worker is noticed at once, a frozen one after 3 s.
QUICK: Mapping[str, str] = {
    "ARKLOOP_LEASE_SECONDS": "3",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
    # The clients compute beside it, which are on other machines in production: a worker that gave
    # way to them would lose its lease on a busy machine.
    "ARKLOOP_WORKER_NICENESS": "0",
}
#: As in production.
DEFAULT: Mapping[str, str] = {}


class Stack:
    """Everything that a scenario hurts, in processes of its own below one folder.

    Web and worker processes run the code in `source`, which need not be this checkout, and reach
    the servers only through `postgres_proxy` and `redis_proxy`; with `separate_broker` Celery goes
    through `broker_proxy`, which is another one then.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        *,
        workers: int = 2,
        web: int = 2,
        pace: Mapping[str, str] = QUICK,
        source: Path = ROOT,
        environ: Mapping[str, str] | None = None,
        persist_redis: bool = True,
        separate_broker: bool = False,
        postgres_folder: Path | None = None,
    ) -> None:
        self.folder = folder
        self.journal = journal
        self.source = source
        self.web: list[Member] = []
        self.workers: list[Member] = []
        self._counts = {"web": web, "worker": workers}
        self._extra = {**pace, **(environ or {})}
        self._persist_redis = persist_redis
        self._separate_broker = separate_broker
        self.postgres_folder = postgres_folder or folder
        self._keys: dict[str, str] = {}
        self._opened: list[Connections] = []
        self._at_exit = ExitStack()
        _, self._lines = read_procfile(source / "Procfile")

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def urls(self) -> list[str]:
        """The URLs, one for each web process that should run at this moment."""
        return [member.url for member in self.web if member.url is not None]

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a web or worker process, without a web process' port."""
        return {
            "PATH": path_of_children(),
            "PYTHONPATH": str(self.source),
            "PYTHONUNBUFFERED": "1",
            # Celery's word for root is right for servers; the user who runs this as root knows.
            "PYTHONWARNINGS": "ignore:You're running the worker with superuser",
            "ARKLOOP_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{self.postgres_proxy.port}"
            "/postgres?sslmode=disable",
            "ARKLOOP_REDIS_URL": self._redis_url_through(self.redis_proxy),
            "ARKLOOP_BROKER_URL": self._redis_url_through(self.broker_proxy),
            "ARKLOOP_JWT_SECRET": self._secret,
            "ARKLOOP_REGISTRATION": "open",
            "ARKLOOP_SECURE_COOKIES": "0",
            "ARKLOOP_API_WORKERS": "1",
            "ARKLOOP_WORKER_CONCURRENCY": "100",
            "ARKLOOP_SCRIPTED": "1",
            "ARKLOOP_FAULTS": "1",
            "ARKLOOP_SSE_PING_SECONDS": "1",
            **self._extra,
        }

    def _redis_url_through(self, proxy: FaultProxy) -> str:
        return self.redis.url.replace(f":{self.redis.port}/", f":{proxy.port}/")

    def start_worker(
        self, fault_point: str | None = None, environ: Mapping[str, str] | None = None
    ) -> Member:
        """Start one more; a fault point, such as `worker.claimed:1:KILL`, is armed in its first
        life.
        """
        member = self._member("worker", {**self.environ, **(environ or {})}, fault_point, None)
        self.workers.append(member)
        member.start()
        return member

    def start_web(
        self, fault_point: str | None = None, environ: Mapping[str, str] | None = None
    ) -> Member:
        """Start one more, as `start_worker` does."""
        port = quiet_port()
        environ = {**self.environ, **(environ or {}), "ARKLOOP_PORT": str(port)}
        member = self._member("web", environ, fault_point, f"http://127.0.0.1:{port}")
        self.web.append(member)
        member.start()
        return member

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until every web process responds and every worker has registered itself.

        Raises:
            NotInTime
        """
        deadline = time.monotonic() + seconds
        for member in (*self.web, *self.workers):
            member.wait_ready(max(0, deadline - time.monotonic()))

    def api_key(self, org: str = "a") -> str:
        """Return the key of the owner of an org of that name; the same at each call."""
        if org not in self._keys:
            with self._straight.transaction() as tx:
                org_id = accounts.create_org(tx, org)
                user_id = accounts.create_user(
                    tx,
                    org_id=org_id,
                    role="owner",
                    login=f"owner-{org}",
                    email=f"owner-{org}@example.com",
                    password_hash="-",  # nobody can log in
                )
                owner = Actor(
                    org_id=org_id,
                    user_id=user_id,
                    role="owner",
                    permissions=PERMISSIONS_OF_ROLE["owner"],
                )
                _, self._keys[org] = api_keys.create(tx, owner, name="chaos")
        return self._keys[org]

    def connect(self) -> Connections:
        """Connect directly to the servers, by the code of this checkout; closed with the stack."""
        settings = Settings.from_env(
            {
                **self.environ,
                "ARKLOOP_DATABASE_URL": self.postgres.url,
                "ARKLOOP_REDIS_URL": self.redis.url,
            }
        )
        opened = connect(settings, application="chaos")
        self._opened.append(opened)
        return opened

    def redis_client(self) -> Any:
        """Connect directly to Redis; closed with the stack."""
        client = self.redis.client()
        self._at_exit.callback(client.close)
        return client

    def close(self) -> None:
        """End every process, whatever its state; the folder stays."""
        for opened in self._opened:
            opened.close()
        members = (*self.web, *self.workers)
        with ThreadPoolExecutor(max(1, len(members))) as pool:
            list(pool.map(lambda member: member.stop(signal.SIGKILL), members))
        self._at_exit.close()

    # ---- inside -------------------------------------------------------------------------

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._secret = secrets.token_hex(32)
        self.postgres = Postgres(self.journal, self.postgres_folder)
        self._at_exit.callback(self.postgres.close)
        port = quiet_port()
        self.redis = Redis(self.journal, self.folder, port=port, persist=self._persist_redis)
        self._at_exit.callback(self.redis.close)
        self.postgres_proxy = self._at_exit.enter_context(FaultProxy(self.postgres.socket))
        self.redis_proxy = self._at_exit.enter_context(FaultProxy(("127.0.0.1", port)))
        self.broker_proxy = (
            self._at_exit.enter_context(FaultProxy(("127.0.0.1", port)))
            if self._separate_broker
            else self.redis_proxy
        )
        with ThreadPoolExecutor(2) as pool:
            starts = [pool.submit(self.redis.start), pool.submit(self._start_postgres)]
            for started in starts:
                started.result()
        self._straight = self.connect()
        for _ in range(self._counts["web"]):
            self.start_web()
        for _ in range(self._counts["worker"]):
            self.start_worker()
        for org in ("a", "b"):
            self.api_key(org)
        self.wait_ready()

    def _start_postgres(self) -> None:
        self.postgres.start()
        engine = create_engine(self.postgres.url)
        schema.migrate(engine)
        engine.dispose()

    def _member(
        self, role: str, environ: Mapping[str, str], fault_point: str | None, url: str | None
    ) -> Member:
        number = len(self.web if role == "web" else self.workers) + 1
        return Member(
            role,
            self._lines[role],
            environ,
            self.source,
            self.journal,
            self.folder / f"{role}.{number}.log",
            fault_point=fault_point,
            url=url,
            is_ready=self._answers if role == "web" else self._has_registered,
        )

    def _answers(self, member: Member) -> bool:
        try:
            with urllib.request.urlopen(f"{member.url}/healthz", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _has_registered(self, member: Member) -> bool:
        try:
            with self._straight.reading() as sql:
                row = exists().where(workers_table.c.pid == member.pid)
                return bool(sql.scalar(select(row)))
        except Unavailable:
            return False
