"""The ground of all tests: a real Postgres and a real Redis, fresh databases, the app, its
users.
"""

import gc
import os
import pwd
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from sqlalchemy import create_engine, func, insert, text

from arkloop.api.auth import access_tokens
from arkloop.api.endpoints.auth import COOKIE, COOKIE_PATH
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.shared import ids
from arkloop.shared.accounts import accounts, sessions
from arkloop.shared.config import FALLBACKS, Settings
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage import schema
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import runs
from tests import both_ends, leaks, midnight, own_processes, walls
from tests.caller import Caller
from tests.clients import PASSWORD_HASH, Register, User
from tests.cpu_of_files import CpuOfFiles
from tests.shared_app import SHARED, SharedApp, connect_patiently, own_app, shared_app, timeouts_of
from tests.stored_runs import StoredRuns
from tests.system import System, running_system, sealing
from tests.web_server import WebServer, web_server

# Set in a developer's shell, they would steer the tests.
for name in list(os.environ):
    if name.startswith(("ARKLOOP_", "OPENAI_", "ANTHROPIC_")) or name in FALLBACKS.values():
        del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    walled = "all databases are behind row-level security"
    parser.addoption("--walled", action="store_true", help=walled)
    parser.addoption(
        "--leaks", action="store_true", help="search what all tests have left for secrets"
    )
    parser.addoption("--cpu", action="store_true", help="print the CPU seconds of each file")


def pytest_configure(config: pytest.Config) -> None:
    if own_processes.MARK in config.getoption("markexpr"):
        config.pluginmanager.register(own_processes.OwnProcesses())
    if config.getoption("cpu"):
        config.pluginmanager.register(CpuOfFiles(config))


#: The whole service, once a test has started it, and the files with tests that use it.
_SYSTEM = ExitStack()
_FILES_WITH_SYSTEM: set[Path] = set()


# Collecting the tests makes a million objects that stay: walking through them again and again
# takes a third of the time that it takes to load the tests.
gc.disable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    left_out = own_processes.is_left_out(collection_path, config.getoption("markexpr"))
    return True if left_out else None  # the decision of others


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files that use the whole service to the front: it is stopped after the last one.

    Idle, it takes 4 % of a core, for each process of the tests.
    """
    _FILES_WITH_SYSTEM.update(item.path for item in items if "system" in _fixtures_of(item))
    items.sort(key=lambda item: item.path not in _FILES_WITH_SYSTEM)
    for item in items:
        if own_processes.is_of_tools(item.path):
            item.add_marker(own_processes.MARK_OF_TOOLS)
        if item.config.getoption("walled") and item.get_closest_marker("owner"):
            item.add_marker(pytest.mark.skip(reason="writes what the service's role may not"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Stop the whole service before the first file that does not use it, and pass by midnight."""
    midnight.pass_by()
    if item.path not in _FILES_WITH_SYSTEM:
        _SYSTEM.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> both_ends.BothEnds | None:
    return both_ends.scheduler(config, log)


def _fixtures_of(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


def pytest_collection_finish() -> None:
    """Leave what was loaded out of every garbage collection from now on."""
    gc.freeze()
    gc.enable()


# A background job of a shell ignores Ctrl-C, and so would every command that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes is the machine's matter: a busy one is no fault of the code. Examples
# are the same in each run of a test; `--hypothesis-profile random` looks for new ones.
hypothesis_settings.register_profile(
    "random", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.register_profile(
    "same", hypothesis_settings.get_profile("random"), max_examples=50, derandomize=True
)
hypothesis_settings.register_profile(
    "many", hypothesis_settings.get_profile("random"), max_examples=20_000, database=None
)
hypothesis_settings.load_profile("same")


# ---- servers -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[EmbeddedPostgres]:
    """A server that keeps nothing safe: it lives as long as the tests."""
    options = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    options["autovacuum"] = "off"  # it would change plans at its own time
    data = tmp_path_factory.mktemp("servers") / "postgres"
    with EmbeddedPostgres(data, options=options) as server:
        yield server
        if pytestconfig.getoption("--leaks"):
            assert [] == [str(leak) for leak in leaks.in_databases(server)]


@pytest.fixture(scope="session")
def redis_url(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[str]:
    with EmbeddedRedis(tmp_path_factory.mktemp("servers") / "redis", persist=False) as server:
        yield server.url
        if pytestconfig.getoption("--leaks"):
            assert [] == [str(leak) for leak in leaks.in_redis(server.url)]


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_logs(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[None]:
    """The search for secrets in logs of processes and of the tests themselves, with `--leaks`."""
    yield
    if pytestconfig.getoption("--leaks"):
        found = [*leaks.in_logs(tmp_path_factory.getbasetemp()), *_LEAKS_OF_TESTS]
        assert [] == [str(leak) for leak in found]


#: What the log of this process said during a test.
_LEAKS_OF_TESTS: list[leaks.Leak] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, content in report.sections:
        if name.startswith("Captured log"):
            _LEAKS_OF_TESTS.extend(leaks.in_bytes(content.encode(errors="replace"), report.nodeid))


@pytest.fixture(scope="session")
def new_database(postgres: EmbeddedPostgres, pytestconfig: pytest.Config) -> Callable[[], str]:
    """Call it for the URL of a database of one's own: all migrations have run, no row is in it.

    With `--walled` it is behind row-level security, and the URL is that of the service's role.
    """
    _create_database(postgres, "template_arkloop", "template0")
    engine = create_engine(postgres.url_of("template_arkloop"))
    schema.migrate(engine)
    engine.dispose()
    is_walled = pytestconfig.getoption("walled")
    if is_walled:
        walls.put_up(postgres.url_of("template_arkloop"))

    def new() -> str:
        name = f"test_{secrets.token_hex(6)}"
        _create_database(postgres, name, "template_arkloop")
        return walls.behind(postgres.url_of(name)) if is_walled else postgres.url_of(name)

    return new


def _create_database(postgres: EmbeddedPostgres, name: str, template: str) -> None:
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:
        how = "STRATEGY file_copy" if sql.dialect.server_version_info >= (15,) else ""
        sql.execute(text(f"CREATE DATABASE {name} TEMPLATE {template} {how}"))
    engine.dispose()


# ---- the app in this process ---------------------------------------------------------


@pytest.fixture(scope="session")
def new_settings(
    new_database: Callable[[], str], redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Settings]:
    """Call it for settings with a database of their own: registration is open, the scripted model
    is there.
    """

    def new() -> Settings:
        return Settings(
            database_url=new_database(),
            redis_url=redis_url,
            broker_url=redis_url,
            jwt_secret=secrets.token_hex(32),
            encryption_key=secrets.token_hex(32),
            registration_open=True,
            scripted=True,
            secure_cookies=False,
            database_pool_size=30,
            files_dir=str(tmp_path_factory.mktemp("files")),
            # Programs of the tests are in folders that only this user may enter.
            mcp_stdio_user=pwd.getpwuid(os.geteuid()).pw_name,
        )

    return new


@pytest.fixture(scope="session")
def app_of_all(new_settings: Callable[[], Settings]) -> Iterator[SharedApp]:
    with shared_app(new_settings()) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> SharedApp | None:
    """The app that the module shares with others; None if it has a database of its own."""
    folder = str(request.path.relative_to(request.config.rootpath))
    if not folder.startswith(SHARED) or request.node.get_closest_marker("own_database"):
        return None
    found: SharedApp = request.getfixturevalue("app_of_all")
    return found


@pytest.fixture(scope="module")
def settings(new_settings: Callable[[], Settings], shared: SharedApp | None) -> Settings:
    """Registration is open, the scripted model is there."""
    return shared.connections.settings if shared else new_settings()


@pytest.fixture(scope="module")
def connections(
    request: pytest.FixtureRequest, settings: Settings, shared: SharedApp | None
) -> Iterator[Connections]:
    """Notifications go out at once, on the caller's thread."""
    if shared and shared.connections.settings is settings:
        yield shared.connections
        # An outage that a test has played is over.
        shared.connections.redis_outage.answered()
        shared.connections.broker_outage.answered()
        shared.connections.losses.clear()
    else:
        opened = connect_patiently(settings, timeouts_of(request))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def app(connections: Connections, shared: SharedApp | None) -> Iterator[Flask]:
    if shared and shared.connections is connections:
        with shared.described.checked():
            yield shared.app
    else:
        with own_app(connections) as (made, described), described.checked():
            yield made


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client without a token, with a cookie jar of its own."""
    return app.test_client()


@pytest.fixture
def register(app: Flask, connections: Connections) -> Register:
    """Call it for a user who is logged in: the owner of a new org, or, with `org_of` another
    user, one with `role` in theirs.
    """

    def new(login: str = "", *, org_of: User | None = None, role: str = "owner") -> User:
        name = login or f"user-{secrets.token_hex(6)}"
        client = app.test_client()
        with connections.transaction() as tx:
            org_id = org_of.org_id if org_of else accounts.create_org(tx, name)
            user_id = accounts.create_user(
                tx,
                org_id=org_id,
                role=role,
                login=name,
                email=f"{name}@example.com",
                password_hash=PASSWORD_HASH,
            )
            session = sessions.begin(tx, user_id=user_id, org_id=org_id)
        client.set_cookie(COOKIE, session.refresh_token, path=COOKIE_PATH)
        token = access_tokens.issue(
            connections.settings, user_id=user_id, org_id=org_id, session_id=session.id
        )
        return User(client, name, user_id, org_id, token)

    return new


@pytest.fixture
def alice(register: Register) -> User:
    """The owner of an org of her own."""
    return register()


@pytest.fixture
def make_run(connections: Connections) -> Callable[..., UUID]:
    """Call it for a run that stands in the database in whatever state."""

    def make(
        user: User, thread_id: str, state: RunState = RunState.EXECUTING, **columns: Any
    ) -> UUID:
        run_id = ids.new_id()
        values = {
            "id": run_id,
            "org_id": user.org_id,
            "thread_id": UUID(thread_id),
            "created_by_user_id": user.id,
            "trace_id": ids.new_trace_id(),
            "persona_id": "assistant@1",
            "route_id": "scripted",
            "model": "scripted-1",
            "position": 1000,
            "state": state,
            "queued_at": func.now(),
        }
        with connections.transaction() as tx:
            tx.sql.execute(insert(runs).values({**values, **columns}))
        return run_id

    return make


@pytest.fixture
def stored(connections: Connections, alice: User) -> StoredRuns:
    """Call its methods for runs of an org of the test's own."""
    return StoredRuns.of(connections, alice)


# ---- the app behind a real server ----------------------------------------------------


@pytest.fixture(scope="session")
def server(
    new_database: Callable[[], str], redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebServer]:
    """A gunicorn with one gevent worker and a database of its own; new users have credits."""
    environ = {"ARKLOOP_DATABASE_URL": new_database(), "ARKLOOP_REDIS_URL": redis_url}
    environ["ARKLOOP_NEW_ORG_CREDITS"] = "1000000"
    folder = tmp_path_factory.mktemp("web")
    environ["ARKLOOP_FILES_DIR"] = str(folder / "files")
    with web_server(environ, folder / "stderr.log", as_in_production=True) as started:
        yield started


# ---- the whole service in processes of its own ---------------------------------------


@pytest.fixture(scope="session")
def system(
    new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """Two web servers, a worker, a database and a Redis."""
    folder = tmp_path_factory.mktemp("system")
    yield _SYSTEM.enter_context(
        running_system(new_database, folder, environ=sealing(), as_in_production=True)
    )
    _SYSTEM.close()


@pytest.fixture(scope="module")
def user(system: System) -> Caller:
    """The owner of an org of the module's own, over real HTTP."""
    return system.caller()
