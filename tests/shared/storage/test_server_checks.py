"""Servers that cannot be used are refused when a process starts, in one line."""

import re
import secrets
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text

from arkloop.cli.dev.dev import path_of_children, read_procfile
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_redis import find_binary
from arkloop.cli.dev.embedded_server import free_port
from arkloop.cli.main import main
from arkloop.shared.config import Settings
from arkloop.shared.storage import server_checks
from arkloop.shared.storage.server_checks import UnsuitableServer
from tests.closed_port import closed_port
from tests.shared_app import connect_patiently
from tests.waiting import eventually
from tests.web_server import ROOT

pytestmark = pytest.mark.processes


def check(settings: Settings, **changes: str) -> None:
    connections = connect_patiently(replace(settings, **changes))
    try:
        server_checks.check(connections)
    finally:
        connections.close()


@pytest.mark.parametrize("variable", ["redis_url", "broker_url"])
@pytest.mark.parametrize("option", ["ssl_cert_reqs=CERT_REQUIRED", "visibility_timeout=60"])
def test_an_option_that_no_client_knows_is_named(
    settings: Settings, variable: str, option: str
) -> None:
    """Celery takes these, the Redis client does not: no message would arrive."""
    url = f"rediss://:secret@redis.example.invalid/0?{option}"
    with pytest.raises(UnsuitableServer, match=f"^ARKLOOP_{variable.upper()} has an option"):
        check(settings, **{variable: url})


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    folder = tmp_path_factory.mktemp("cluster")
    options = ("--port", str(port), "--cluster-enabled", "yes", "--save", "")
    options += ("--cluster-port", str(free_port()))  # of its nodes among each other
    server = subprocess.Popen([find_binary(), *options], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: answers(port))
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(60)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def old_redis(version: str) -> Iterator[str]:
    """Respond to INFO as such a server does; nothing else is requested."""
    info = f"redis_version:{version}\r\n".encode()
    answers = {
        b"HELLO": b"-ERR unknown command `HELLO`\r\n"
        if version < "6"
        else b"%1\r\n+proto\r\n:3\r\n",
        b"INFO": b"$%d\r\n%b\r\n" % (len(info), info),
    }

    def serve(client: socket.socket) -> None:
        with client:
            while request := client.recv(4096):
                for command in re.findall(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n", request):
                    client.sendall(answers.get(command.upper(), b"+OK\r\n"))

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


def test_what_the_tests_use_is_accepted(settings: Settings) -> None:
    """The servers of the tests are accepted, as are unavailable servers, since processes work when
    those are back.
    """
    check(settings)
    nowhere = f"redis://127.0.0.1:{closed_port()}/0"
    check(settings, redis_url=nowhere, broker_url=nowhere)


@pytest.mark.parametrize("variable", ["redis_url", "broker_url"])
def test_a_cluster_is_refused(settings: Settings, cluster_url: str, variable: str) -> None:
    """The message names the setting."""
    with pytest.raises(UnsuitableServer, match=f"ARKLOOP_{variable.upper()} .* Redis Cluster"):
        check(settings, **{variable: cluster_url})


def test_a_refusal_names_the_variable_that_is_set(
    settings: Settings, cluster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A platform may set `REDIS_URL`, which is used in the absence of the service's own."""
    monkeypatch.setenv("REDIS_URL", cluster_url)
    with pytest.raises(UnsuitableServer, match=r"^REDIS_URL points to a Redis Cluster"):
        check(settings, redis_url=cluster_url)


@pytest.mark.parametrize("variable", ["redis_url", "broker_url"])
@pytest.mark.parametrize(("version", "named"), [("6.0.20", "6.0.20"), ("5.0.14", "before 6.0")])
def test_an_old_redis_is_refused(
    settings: Settings, variable: str, version: str, named: str
) -> None:
    """A Redis older than Celery's minimum is refused; the minimum is accepted."""
    with (
        old_redis(version) as url,
        pytest.raises(UnsuitableServer, match=f"Redis {named}; version 6.2 or later is required"),
    ):
        check(settings, **{variable: url})
    with old_redis("6.2.0") as url:
        check(settings, **{variable: url})


@pytest.fixture
def latin1(postgres: EmbeddedPostgres, tmp_path: Path) -> str:
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    name = f"latin1_{secrets.token_hex(6)}"
    with engine.connect() as sql:
        sql.execute(text(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"))
    engine.dispose()
    return postgres.url_of(name)


def test_a_database_that_cannot_store_every_text_is_refused(
    settings: Settings, latin1: str
) -> None:
    """A database with another encoding is refused before the first event, and not migrated."""
    with pytest.raises(UnsuitableServer, match="encoding is LATIN1"):
        check(settings, database_url=latin1)
    done = CliRunner().invoke(main, ["migrate"], env={"ARKLOOP_DATABASE_URL": latin1})

    assert 1 == done.exit_code
    assert "Error: The database encoding is LATIN1" in done.output


@pytest.fixture
def old_postgres(postgres: EmbeddedPostgres) -> str:
    """A database in which the server says of itself that it is Postgres 12."""
    name = f"old_{secrets.token_hex(6)}"
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:
        sql.execute(text(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0"))
        # The version cannot be set; what comes before the system's own functions is called instead.
        sql.execute(text(f"ALTER DATABASE {name} SET search_path = public, old, pg_catalog"))
    engine.dispose()
    engine = create_engine(postgres.url_of(name), isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:
        sql.execute(text("CREATE SCHEMA old"))
        sql.execute(
            text(
                "CREATE FUNCTION old.current_setting(text) RETURNS text LANGUAGE sql AS"
                " $$ SELECT CASE $1 WHEN 'server_version_num' THEN '120022'"
                " WHEN 'server_version' THEN '12.22 (Debian 12.22-1.pgdg12+1)'"
                " ELSE pg_catalog.current_setting($1) END $$"
            )
        )
    engine.dispose()
    return postgres.url_of(name)


def test_an_old_postgres_is_refused_before_anything_is_changed(
    settings: Settings, old_postgres: str
) -> None:
    """A migration would stop at the first statement that the server does not know."""
    with pytest.raises(UnsuitableServer, match=r"^Postgres 12\.22 is too old; 13 or later"):
        check(settings, database_url=old_postgres)
    done = CliRunner().invoke(main, ["migrate"], env={"ARKLOOP_DATABASE_URL": old_postgres})

    assert 1 == done.exit_code
    assert "Error: Postgres 12.22 is too old; 13 or later is required" == done.output.strip()
    engine = create_engine(old_postgres)
    with engine.connect() as sql:
        assert sql.scalar(text("SELECT to_regclass('alembic_version')")) is None
    engine.dispose()


@pytest.mark.parametrize(("role", "status"), [("web", 3), ("worker", 1)])
def test_no_process_starts_on_such_a_server(
    role: str,
    status: int,
    cluster_url: str,
    new_database: Callable[[], str],
    tmp_path: Path,
) -> None:
    """Each process of the Procfile exits by itself on an unsuitable server, and says why in one
    line.
    """
    environ = {
        "PATH": path_of_children(),
        "PYTHONWARNINGS": "ignore:You're running the worker with superuser",
        "ARKLOOP_DATABASE_URL": new_database(),
        "ARKLOOP_REDIS_URL": cluster_url,
        "ARKLOOP_JWT_SECRET": "0" * 64,
        "ARKLOOP_SCRIPTED": "1",
        "ARKLOOP_PORT": "0",
        # With two, gunicorn 27 ends in a traceback if the second one exits while it stops.
        "ARKLOOP_API_WORKERS": "1",
    }
    line = read_procfile(ROOT / "Procfile")[1][role]
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=180
    )

    assert status == done.returncode, done.stderr
    expected = "ARKLOOP_REDIS_URL points to a Redis Cluster, which is not supported"
    assert expected in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
