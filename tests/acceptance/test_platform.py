"""A platform such as Heroku, which builds from requirements.txt and runs the Procfile's lines."""

import os
import secrets
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from sqlalchemy import make_url

from arkloop.cli.dev.dev import read_procfile
from arkloop.cli.dev.embedded_server import free_port
from tests.caller import Caller, client
from tests.clients import PASSWORD
from tests.tls_proxy import tls_proxy
from tests.waiting import eventually
from tests.web_server import ROOT, answers

BUILT = ROOT / ".cache/platform"
PYTHON = BUILT / "bin/python"
#: What platforms wait for before they kill.
STOP_SECONDS = 30

pytestmark = [
    pytest.mark.platform,
    pytest.mark.skipif(
        not (BUILT / ".installed").exists() and not os.environ.get("NEED_PLATFORM"),
        reason="the packages of production are not installed: make test-platform",
    ),
]


@dataclass(frozen=True)
class Dynos:
    """A folder with the repository's files, and the variables that a platform gives processes."""

    folder: Path
    environ: dict[str, str]
    lines: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environ['PORT']}"

    def run(self, line: str) -> str:
        """Run a command to its end, as `release` or as somebody who is connected to a dyno."""
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a line of the Procfile; at the end its processes get SIGTERM, and must end well."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", self.lines[name]],
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
            # All processes of a dyno get it.
            os.killpg(process.pid, signal.SIGTERM)
            assert 0 == process.wait(STOP_SECONDS), (self.folder / f"{name}.log").read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def dynos(
    new_database: Callable[[], str], redis_url: str, tmp_path: Path
) -> Iterator[tuple[Dynos, str]]:
    """The files of the commit's tree, and servers as a platform names them."""
    app = tmp_path / "app"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    app.mkdir()
    archive = subprocess.run(
        ["tar", "--create", "--null", "--files-from=-", "--ignore-failed-read"],
        cwd=ROOT,
        input=names,
        capture_output=True,
        check=True,
    ).stdout
    subprocess.run(["tar", "--extract"], cwd=app, input=archive, check=True)
    database = new_database()
    certificate = trustme.CA().issue_cert("redis.platform.example")  # of nobody's authority
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    redis_port = make_url(redis_url).port
    assert redis_port is not None
    with tls_proxy(context, redis_port) as port:
        password = make_url(redis_url).password
        environ = {
            "PATH": f"{PYTHON.parent}:/usr/bin:/bin",
            "HOME": str(app),
            "PORT": str(free_port()),
            "WEB_CONCURRENCY": "1",
            "DATABASE_URL": database.replace("postgresql+psycopg://", "postgres://"),
            "REDIS_URL": f"rediss://:{password}@127.0.0.1:{port}",
            "ARKLOOP_JWT_SECRET": secrets.token_hex(32),
            "ARKLOOP_REDIS_VERIFY": "0",
            "ARKLOOP_SCRIPTED": "1",
        }
        release, lines = read_procfile(app / "Procfile")
        assert release is not None
        yield Dynos(app, environ, lines), release


def test_the_procfile_works_with_what_a_platform_gives(dynos: tuple[Dynos, str]) -> None:
    """Release, web and worker start from the packages of production alone; a run that a deploy
    interrupts is resumed by the next worker; SIGTERM ends each process in time and with status 0.
    """
    app, release = dynos
    app.run(release)
    with app.running("web"):
        eventually(lambda: answers(app.url))
        with socket.create_connection((socket.gethostname(), int(app.environ["PORT"])), timeout=5):
            pass  # a platform's router comes from another machine
        with app.running("worker"):
            app.run(
                "python -m arkloop.cli users create --org acme --create --role owner --login alice"
                f" --email alice@example.com --password '{PASSWORD}'"
            )
            caller = _caller(app.url)
            assert "completed" == caller.ended(caller.run({"say": "Hello."}))["status"]
            doctor = app.run("python -m arkloop.cli doctor --json || true")
            assert '"redis clock",\n      "status": "ok"' in doctor
            long = caller.run({"count": 60, "delay_ms": 100}, {"say": "Done."})
            caller.until(long, "status", "running")
        with app.running("worker"):
            assert "completed" == caller.ended(long)["status"]


def _caller(url: str) -> Caller:
    answer = client(url).post("/v1/auth/login", json={"login": "alice", "password": PASSWORD})
    token = answer.json()["access_token"]
    http = client(url, token)
    me = http.get("/v1/me").json()
    return Caller(url, token, http, me["id"], me["org_id"], "alice")
