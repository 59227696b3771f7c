"""The whole service in processes of its own: two web servers, a worker, a database, a Redis."""

import os
import pwd
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import psutil

from arkloop.api.auth import access_tokens
from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.shared.accounts import accounts, sessions
from arkloop.shared.storage.connections import Connections
from tests.caller import Caller, client
from tests.clients import PASSWORD, PASSWORD_HASH
from tests.forked import SERVER, Forked
from tests.shared_app import connect_patiently
from tests.waiting import eventually
from tests.web_server import INHERITED, ROOT, WebServer, starts_otherwise, web_server

CONCURRENCY = 100
#: A killed worker is noticed within a second, a frozen one after the lease; webhooks are repeated
#: within seconds, but not because the receiver, a thread of the tests, had no time for one.
PACE = {
    "ARKLOOP_WEBHOOK_TIMEOUT_SECONDS": "5",
    "ARKLOOP_WEBHOOK_RETRY_SECONDS": "0.5,0.5,1,600",
    "ARKLOOP_LEASE_SECONDS": "12",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "1",
    # The tests compute beside it: a worker that gave way to them would lose its lease while it
    # imports the SDK of a vendor.
    "ARKLOOP_WORKER_NICENESS": "0",
}
#: The worker sweeps often; web servers that did so, too, would take a third of the suite's CPU.
REST = {"ARKLOOP_SWEEP_SECONDS": "1"}
#: Nothing is there: tests go where browsers would be sent to by themselves.
PUBLIC_URL = "https://runs.example.com"
#: The Procfile's own line, but for its shell and the number of runs.
CELERY = [
    *(sys.executable, "-m", "gevent.monkey", "--module", "celery", "--quiet"),
    *("--app", "arkloop.worker.app", "worker", "--pool", "gevent"),
    *("--concurrency", str(CONCURRENCY), "--without-gossip"),
    *("--without-mingle", "--without-heartbeat", "--loglevel", "warning"),
]
MODULE = CELERY.index("celery")


class Worker:
    """A Celery worker that is started again whenever it dies, as a supervisor would do.

    Its processes are forked, but for the first one `as_in_production`.
    """

    def __init__(
        self, environ: Mapping[str, str], log: Path, *, as_in_production: bool = False
    ) -> None:
        self.log = log
        #: The command line of the first process, unless it is forked.
        self.first_command: list[str] = []
        self._environ = {**INHERITED, **environ}
        self._as_in_production = as_in_production
        #: Held from a look at `_wanted` until the process that it calls for is in `_process`.
        self._lock = threading.Lock()
        self._wanted = False
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._watcher: threading.Thread | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self._lock:
            self._wanted = True
            self._start_process()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it for now; returns when the process is gone."""
        self._end(how)
        if self._watcher is not None:
            self._watcher.join(100)
            assert not self._watcher.is_alive(), self.log.read_text()

    def ask_to_stop(self) -> None:
        """Send SIGTERM without waiting: Celery takes some seconds."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        with self._lock:
            self._wanted = False
            if self._process is not None:
                self._process.send_signal(how)

    def _start_process(self) -> None:
        if self._as_in_production or starts_otherwise(self._environ):
            self._as_in_production = False
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    CELERY, cwd=ROOT, env=self._environ, stdout=output, stderr=output
                )
            # For a moment after its start a process has no command line.
            process = psutil.Process(self.pid)
            eventually(lambda: bool(process.cmdline()))
            self.first_command = self.first_command or process.cmdline()
        else:
            self._process = SERVER.start(CELERY[MODULE:], self._environ, self.log)

    def _watch(self) -> None:
        while True:
            assert self._process is not None
            self._process.wait()
            with self._lock:
                if not self._wanted:
                    return
                self._start_process()


@dataclass(frozen=True)
class System:
    """`web` are two servers of one service ("two pods"); `connections` reach its stores."""

    web: Sequence[WebServer]
    worker: Worker
    connections: Connections
    environ: Mapping[str, str]
    folder: Path

    def caller(self) -> Caller:
        """Create a user, the owner of an org of their own that the operator has made."""
        with self.connections.transaction() as tx:
            org_id = accounts.create_org(tx, "made by the operator")
        return self._member(org_id, "owner")

    def newcomer(self) -> Caller:
        """Register a user, the owner of an org of their own, without credits."""
        return register(self.web[0].url)

    def colleague(self, of: Caller, role: str = "member") -> Caller:
        """Create a user in the same org."""
        return self._member(UUID(of.org_id), role)

    def _member(self, org_id: UUID, role: str) -> Caller:
        name = f"user-{secrets.token_hex(6)}"
        with self.connections.transaction() as tx:
            user_id = accounts.create_user(
                tx,
                org_id=org_id,
                role=role,
                login=name,
                email=f"{name}@example.com",
                password_hash=PASSWORD_HASH,
            )
            session = sessions.begin(tx, user_id=user_id, org_id=org_id)
        web = self.web[0]
        token = access_tokens.issue(
            web.settings, user_id=user_id, org_id=org_id, session_id=session.id
        )
        return Caller(web.url, token, client(web.url, token), str(user_id), str(org_id), name)

    @contextmanager
    def one_more_web_server(self, **environ: str) -> Iterator[WebServer]:
        """Start a third server of the same service, with settings added, for the length of the
        block.
        """
        log = self.folder / f"web-{secrets.token_hex(4)}.log"
        with web_server({**self.environ, **environ}, log) as server:
            yield server

    @contextmanager
    def without_worker(self) -> Iterator[None]:
        """Stop the worker for the length of the block."""
        self.worker.stop(signal.SIGKILL)
        try:
            yield
        finally:
            self.worker.start()

    @contextmanager
    def with_frozen_worker(self) -> Iterator[None]:
        """Let the worker stand still for the length of the block."""
        os.kill(self.worker.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.worker.pid, signal.SIGCONT)

    @contextmanager
    def dying_workers(self, fault_point: str) -> Iterator[Worker]:
        """Replace the worker by one each of whose lives ends at the fault point."""
        environ = {**self.environ, "ARKLOOP_FAULT_POINT": fault_point}
        with self.without_worker():
            worker = Worker(environ, self.folder / "dying-worker.log")
            worker.start()
            try:
                yield worker
            finally:
                worker.stop(signal.SIGKILL)


def register(url: str) -> Caller:
    """Register a user of the service at `url`."""
    name = f"user-{secrets.token_hex(6)}"
    answer = client(url).post(
        "/v1/auth/register",
        json={"login": name, "email": f"{name}@example.com", "password": PASSWORD},
    )
    assert 201 == answer.status_code, answer.text
    return _logged_in(url, name)


def _logged_in(url: str, login: str) -> Caller:
    answer = client(url).post("/v1/auth/login", json={"login": login, "password": PASSWORD})
    token = answer.json()["access_token"]
    http = client(url, token)
    me = http.get("/v1/me").json()
    return Caller(url, token, http, me["id"], me["org_id"], login)


def sealing() -> dict[str, str]:
    """Return the setting that lets orgs store secrets."""
    return {"ARKLOOP_ENCRYPTION_KEY": secrets.token_hex(32)}


@contextmanager
def running_system(
    new_database: Callable[[], str],
    folder: Path,
    redis_url: str | None = None,
    *,
    web: int = 2,
    environ: Mapping[str, str] | None = None,
    as_in_production: bool = False,
) -> Iterator[System]:
    """Start everything, with one or two web servers; at the end stop each process by its own id.

    The processes are forked, or start `as_in_production`, but for workers after the first one.

    Without `redis_url` the system has a Redis of its own. `environ` are more settings: with
    `sealing()` orgs have providers of their own, and a worker loads the SDKs of all vendors, which
    takes longer than the rest of its start.
    """
    with ExitStack() as stack:
        if redis_url is None:
            own = stack.enter_context(EmbeddedRedis(folder / "redis", persist=False))
            redis_url = own.url
        common = {
            "ARKLOOP_DATABASE_URL": new_database(),
            "ARKLOOP_REDIS_URL": redis_url,
            "ARKLOOP_JWT_SECRET": secrets.token_hex(32),
            "ARKLOOP_SCRIPTED": "1",
            "ARKLOOP_FILES_DIR": str(folder / "files"),
            "ARKLOOP_FAULTS": "1",
            # Providers and MCP servers of the tests are on this machine.
            "ARKLOOP_ALLOWED_NETWORKS": "127.0.0.0/8",
            "ARKLOOP_FETCH_ALLOWED_NETWORKS": "127.0.0.0/8",
            "ARKLOOP_MCP_STDIO": "1",
            # The interpreter of the tests can be in a home that nobody else may enter.
            "ARKLOOP_MCP_STDIO_USER": pwd.getpwuid(os.geteuid()).pw_name,
            "ARKLOOP_PUBLIC_URL": PUBLIC_URL,
            "ARKLOOP_WORKER_CONCURRENCY": str(CONCURRENCY),
            # Installed next to the service, as the customer's package is.
            "PYTHONPATH": str(ROOT / "tests" / "agents_package"),
            **PACE,
            **(environ or {}),
        }
        worker = Worker(common, folder / "worker.log", as_in_production=as_in_production)
        worker.start()
        stack.callback(worker.stop)
        servers = [
            stack.enter_context(
                web_server(
                    common | REST | own,
                    folder / f"web{i}.log",
                    as_in_production=as_in_production,
                )
            )
            for i, own in enumerate(({}, {"ARKLOOP_SSE_PING_SECONDS": "0.5"})[:web])
        ]
        settings = replace(servers[0].settings, database_pool_size=20)
        connections = connect_patiently(settings)
        stack.callback(connections.close)
        system = System(servers, worker, connections, common, folder)
        _wait_for_worker(system)
        stack.callback(worker.ask_to_stop)
        yield system


def _wait_for_worker(system: System) -> None:
    caller = system.caller()
    run_id = caller.run("ready?")
    eventually(lambda: caller.get_run(run_id)["status"] == "completed", seconds=200)
