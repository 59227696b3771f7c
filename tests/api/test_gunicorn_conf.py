"""The web process as production runs it."""

import json
import os
import secrets
import subprocess
import threading
import time
import urllib.request
from uuid import UUID

import pytest
from sqlalchemy import text

from tests import walls
from tests.waiting import eventually
from tests.web_server import GUNICORN, ROOT, WebServer

pytestmark = pytest.mark.processes


def call(server: WebServer, method: str, path: str, token: str = "", body: object = None) -> dict:
    request = urllib.request.Request(
        f"{server.url}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(json.load(response))


@pytest.fixture(scope="module")
def token(server: WebServer) -> str:
    """The token of a user who has registered at the server."""
    name = secrets.token_hex(8)
    body = {"login": name, "email": f"{name}@example.com", "password": "correct horse"}
    return str(call(server, "POST", "/v1/auth/register", body=body)["access_token"])


def test_a_query_that_waits_holds_up_no_other_request(server: WebServer, token: str) -> None:
    """In one process and one thread psycopg waits together with all the others."""
    thread = call(server, "POST", "/v1/threads", token, {})["id"]
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    )

    def change() -> None:
        with pytest.raises(urllib.request.HTTPError):  # the row is locked for longer than it waits
            call(server, "PATCH", f"/v1/threads/{thread}", token, {"title": "new"})

    def is_served_meanwhile() -> bool:
        changing = threading.Thread(target=change)
        changing.start()
        eventually(lambda: bool(sql.scalar(waiting)) or not changing.is_alive())
        call(server, "GET", "/v1/me", token)
        still_waits = bool(sql.scalar(waiting))
        changing.join()
        return still_waits

    with walls.owner(server.settings.database_url) as engine, engine.begin() as sql:
        sql.execute(text("SELECT 1 FROM threads WHERE id = :id FOR UPDATE"), {"id": UUID(thread)})
        # The machine may stand still for the second and a half that a change waits.
        assert any(is_served_meanwhile() for _ in range(10))


def test_hashing_passwords_holds_up_no_other_request(server: WebServer) -> None:
    """argon2 has threads of its own, and answers come while they are busy."""
    body = {"login": "nobody", "password": "wrong password"}

    def log_in() -> None:
        with pytest.raises(urllib.request.HTTPError):
            call(server, "POST", "/v1/auth/login", body=body)

    logins = [threading.Thread(target=log_in) for _ in range(20)]
    for login in logins:
        login.start()
    times, all_began = [], time.monotonic()
    while any(login.is_alive() for login in logins):
        began = time.monotonic()
        call(server, "GET", "/healthz")
        times.append(time.monotonic() - began)
    for login in logins:
        login.join()

    # Behind the logins, the first would have waited for nearly all of them.
    assert sorted(times)[len(times) // 2] < (time.monotonic() - all_began) / 2


def test_headers_have_a_limit(server: WebServer) -> None:
    """64 KiB of them are refused, and the process lives on."""
    with server.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 65536 + b"\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 431")

    assert server.answers()


def test_wrong_settings_are_all_named_at_once() -> None:
    """The process ends at once, with a line for each problem and without a traceback."""
    done = subprocess.run(
        GUNICORN,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "ARKLOOP_JWT_SECRET": "short", "ARKLOOP_PORT": "x"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert 1 == done.returncode
    assert 4 == len(done.stderr.splitlines()), done.stderr
    for name in ("DATABASE_URL", "REDIS_URL", "JWT_SECRET", "PORT"):
        assert f"ARKLOOP_{name}" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_web_does_not_share_its_port_with_metrics(host: str) -> None:
    """A second socket at the address would get EADDRINUSE."""
    done = subprocess.run(
        GUNICORN,
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "ARKLOOP_DATABASE_URL": "postgresql://localhost/arkloop",
            "ARKLOOP_REDIS_URL": "redis://localhost",
            "ARKLOOP_JWT_SECRET": secrets.token_hex(32),
            "ARKLOOP_PORT": "18080",
            "ARKLOOP_METRICS_PORT": "18080",
            "ARKLOOP_METRICS_HOST": host,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (1, "ARKLOOP_METRICS_PORT: must differ from ARKLOOP_PORT (or PORT)\n") == (
        done.returncode,
        done.stderr,
    )
