"""The service as a team would run it: servers with fsync on, web and worker processes."""

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import psutil
from sqlalchemy import create_engine, text

from arkloop.cli.dev.dev import path_of_children, read_procfile
from arkloop.cli.dev.die_with_parent import dying_with_parent
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.accounts import accounts, api_keys
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.config import Settings
from arkloop.shared.storage import schema
from arkloop.shared.storage.connections import Connections, connect
from bench.networks import Network

ROOT = Path(__file__).parents[1]
READY_SECONDS = 180.0

POSTGRES = {
    "max_connections": "300",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",  # no checkpoint comes in the middle of what is measured
    "log_min_messages": "warning",
}


class Service:
    """Postgres, Redis, `web` gunicorns of one process each and `workers` Celery workers.

    Each gunicorn has a port of its own: its clients are the load balancer. Everything lives in a
    temporary folder and ends with the block.
    """

    def __init__(
        self, *, web: int = 1, workers: int = 1, environ: Mapping[str, str] | None = None
    ) -> None:
        self.urls: list[str] = []
        self.pids: dict[str, list[int]] = {"web": [], "worker": []}
        self._counts = {"web": web, "worker": workers}
        self._extra = dict(environ or {})
        self._secret = secrets.token_hex(32)
        self._at_exit = contextlib.ExitStack()
        _, self._lines = read_procfile(ROOT / "Procfile")

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._at_exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._at_exit.close()

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a web or worker process, without a web process' port."""
        return {
            "PATH": path_of_children(),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore:You're running the worker with superuser",
            "ARKLOOP_DATABASE_URL": self.postgres.url.replace("+psycopg", ""),
            "ARKLOOP_REDIS_URL": self.redis.url,
            "ARKLOOP_JWT_SECRET": self._secret,
            "ARKLOOP_SECURE_COOKIES": "0",
            "ARKLOOP_CORE_DUMPS": "1",  # their memory is measured, perhaps without being root
            "ARKLOOP_API_WORKERS": "1",
            "ARKLOOP_SCRIPTED": "1",
            **self._extra,
        }

    def log(self, name: str) -> str:
        """Return what the processes of that role have logged so far."""
        files = sorted(self.folder.glob(f"{name}.*.log"))
        return "".join(file.read_text(errors="replace") for file in files)

    def memory(self, role: str) -> list[int]:
        """Return the bytes of private memory of each process that serves, without gunicorn's
        masters.
        """
        return [process.memory_full_info().uss for process in self._serving(role)]

    def cpu(self, role: str) -> float:
        """Return the seconds of CPU that the role's processes have used; also `postgres` and
        `redis`. Those of Postgres include processes that have ended.
        """
        if role != "postgres":
            return self._cpu_of_living(role)
        while True:
            ended = self._cpu_of_ended()
            seconds = ended + self._cpu_of_living(role)
            # One that ended meanwhile would be in neither of the two, or in both.
            if ended == self._cpu_of_ended():
                return seconds

    def cpu_of_all(self) -> dict[str, float]:
        """Return the CPU seconds of every role, and of this process, which is the clients."""
        roles = {role: self.cpu(role) for role in ("web", "worker", "postgres", "redis")}
        return {**roles, "clients": time.process_time()}

    def cpu_since(self, before: Mapping[str, float]) -> str:
        """Describe by what `cpu_of_all` has grown."""
        grown = (f"{role} {now - before[role]:.1f}" for role, now in self.cpu_of_all().items())
        return "CPU s: " + ", ".join(grown)

    def redis_connections(self, pid: int) -> int:
        """Open connections from that process to Redis."""
        found = psutil.Process(pid).net_connections("tcp")
        return sum(bool(one.raddr) and one.raddr.port == self.redis_port for one in found)

    def serving(self, role: str) -> list[int]:
        """Return the ids of the processes that do the work."""
        return [process.pid for process in self._serving(role)]

    def connect(self) -> Connections:
        """Connect directly to the servers; closed with the service."""
        settings = Settings.from_env(self.environ)
        opened = connect(settings, application="bench")
        self._at_exit.callback(opened.close)
        return opened

    # ---- inside -------------------------------------------------------------------------

    def _cpu_of_living(self, role: str) -> float:
        seconds = 0.0
        for process in self._serving(role):
            with contextlib.suppress(psutil.NoSuchProcess):  # one of Postgres that vacuumed
                times = process.cpu_times()
                seconds += times.user + times.system
        return seconds

    def _cpu_of_ended(self) -> float:
        """Return the CPU of Postgres' processes that have ended, such as those of connections."""
        times = psutil.Process(self.postgres.pid).cpu_times()
        return float(times.children_user + times.children_system)

    def _serving(self, role: str) -> list[psutil.Process]:
        if role in ("postgres", "redis"):
            server = psutil.Process(self.postgres.pid if role == "postgres" else self.redis.pid)
            return [server, *server.children(recursive=True)]
        processes = [psutil.Process(pid) for pid in self.pids[role]]
        if role == "web":
            return [child for process in processes for child in process.children()]
        return processes

    def _start(self) -> None:
        self.folder = Path(
            self._at_exit.enter_context(
                tempfile.TemporaryDirectory(prefix="arkloop-bench-", ignore_cleanup_errors=True)
            )
        )
        self.redis_port = free_port()
        self.postgres = EmbeddedPostgres(self.folder / "postgres", options=POSTGRES)
        self.redis = EmbeddedRedis(self.folder / "redis", port=self.redis_port)
        self._at_exit.enter_context(self.postgres)
        self._at_exit.enter_context(self.redis)
        engine = create_engine(self.postgres.url)
        schema.migrate(engine)
        engine.dispose()
        self.api_key = self._make_key()
        for _ in range(self._counts["worker"]):
            self.start("worker")
        for _ in range(self._counts["web"]):
            self.start("web")
        self._wait_for_all_web()
        self._wait_for_workers()

    def start(
        self, role: str, environ: Mapping[str, str] | None = None, network: Network | None = None
    ) -> int:
        """Start one more process by its line of the Procfile, perhaps in a network of its own;
        returns its id.
        """
        environ = {**self.environ, **(environ or {})}
        command = ["/bin/sh", "-c", self._lines[role]]
        if network is not None:
            command = network.inside(command)
        if role == "web":
            port, host = free_port(), network.there if network else "127.0.0.1"
            environ |= {"ARKLOOP_HOST": host, "ARKLOOP_PORT": str(port)}
            self.urls.append(f"http://{host}:{port}")
        number = len(self.pids[role]) + 1
        with (self.folder / f"{role}.{number}.log").open("wb") as output:
            process = subprocess.Popen(
                dying_with_parent(command),
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pids[role].append(process.pid)
        self._at_exit.callback(_stop, process)
        return process.pid

    def end(self, role: str) -> None:
        """Kill every process of that role."""
        for pid in self.pids[role]:
            os.killpg(pid, signal.SIGKILL)
        self.pids[role].clear()
        if role == "web":
            self.urls.clear()

    def restart(self, role: str) -> None:
        """Kill every process of that role and start as many; return when all of them serve."""
        count = len(self.pids[role])
        self.end(role)
        for _ in range(count):
            self.start(role)
        if role == "web":
            self._wait_for_all_web()
        else:
            self._wait_for_workers()

    def _make_key(self) -> str:
        self.owner, key = self.new_org("bench")
        return key

    def new_org(self, name: str) -> tuple[Actor, str]:
        """Create an org; returns its owner, and an API key of the owner's."""
        connections = self.connect()
        with connections.transaction() as tx:
            org_id = accounts.create_org(tx, name)
            user_id = accounts.create_user(
                tx,
                org_id=org_id,
                role="owner",
                login=name,
                email=f"{name}@example.com",
                password_hash="-",  # nobody can log in
            )
            owner = Actor(
                org_id=org_id,
                user_id=user_id,
                role="owner",
                permissions=PERMISSIONS_OF_ROLE["owner"],
            )
            return owner, api_keys.create(tx, owner, name=name)[1]

    def wait_for_web(self, url: str) -> None:
        """Return when the web process answers. Raises: TimeoutError."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=2):
                return
            time.sleep(0.05)
        raise TimeoutError(f"{url} is not ready:\n{self.log('web')}")

    def _wait_for_all_web(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self.wait_for_web, self.urls))

    def _wait_for_workers(self) -> None:
        connections = self.connect()
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            with connections.reading() as sql:
                # Rows of killed workers stay for a while.
                known = sql.scalars(text("SELECT pid FROM workers")).all()
            if set(known) >= set(self.pids["worker"]):
                return
            time.sleep(0.05)
        raise TimeoutError(f"the workers are not ready:\n{self.log('worker')}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Its data goes with it: there is nothing to end in good order.
    with contextlib.suppress(ProcessLookupError):  # a benchmark may have ended it already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
