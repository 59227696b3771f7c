"""`arkloop dev`, as a developer meets it: the real command, its real processes, real signals."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from arkloop.cli.dev import local_model
from arkloop.cli.dev.dev import read_procfile
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.cli.dev.embedded_server import free_port
from tests.waiting import is_alive

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL = ("--no-local-model", "--api-workers", "1")
#: Files of the folder in which `dev` is started.
PLUGIN = {
    "prices.py": "PRICES = {'tea': '3 EUR'}",
    "plugins/tools/price.py": (
        "from arkloop.tools import ToolContext, tool\n"
        "from prices import PRICES\n"
        "@tool(idempotent=True)\n"
        "def price(context: ToolContext) -> str:\n"
        "    'Look up a price.'\n"
        "    return PRICES['tea']\n"
    ),
    "plugins/personas/shop@1.yaml": "tools: [price]",
    ".env": "ARKLOOP_PLUGINS=plugins\nARKLOOP_RETENTION_DAYS=7  # not the environment's\n"
    "PYTHONPATH=/of/another/program\n",
}
#: The caller's own settings stay out.
BARE = {name: value for name, value in os.environ.items() if not name.startswith("ARKLOOP_")}


def eventually(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


class Dev:
    """An `arkloop dev` with its output in a file, and a client with its API key."""

    def __init__(self, folder: Path, options: tuple[str, ...], environ: dict[str, str]) -> None:
        self.data = folder / "data"
        self.log = folder / f"output-{time.monotonic_ns()}"
        argv = [BIN / "arkloop", "dev", "--port", "0", "--data", self.data, *options]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                argv, cwd=folder, env=BARE | environ, stdout=output, stderr=output
            )
        self.guard = psutil.Process(self.process.pid)
        self.tree = {self.guard}

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def url(self) -> str:
        ready = [line for line in self.output.splitlines() if line.startswith("Ready on ")]
        return ready[0].removeprefix("Ready on ") if ready else ""

    def wait_until_ready(self) -> "Dev":
        eventually(lambda: self.url != "" or self.process.poll() is not None, 180)
        assert self.url, self.output
        self.remember()
        return self

    def remember(self) -> None:
        """Remember every process that belongs to it now, in addition to those known before."""
        self.tree |= set(self.guard.children(recursive=True))

    def named(self, text: str) -> psutil.Process:
        """Find the topmost process whose command line has this text."""
        supervisor = self.guard.children()[0]
        return next(p for p in supervisor.children() if text in " ".join(p.cmdline()))

    def is_gone(self) -> bool:
        return not any(map(is_alive, self.tree))

    def client(self) -> httpx2.Client:
        key = (self.data / "api-key").read_text().strip()
        return httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
            trust_env=False,
        )

    def get(self, path: str) -> Any:
        with self.client() as client:
            response = client.get(path)
        assert 200 == response.status_code, response.text
        return response.json()

    def post(self, path: str, body: dict[str, str]) -> Any:
        with self.client() as client:
            response = client.post(path, json=body)
        assert 201 == response.status_code, response.text
        return response.json()

    def is_healthy(self) -> bool:
        try:
            return {"status", "schema_version"} == set(self.get("/readyz"))
        except (httpx2.HTTPError, AssertionError):
            return False


StartDev = Callable[..., Dev]


@pytest.fixture
def start_dev(tmp_path: Path) -> Iterator[StartDev]:
    """Start `arkloop dev` with options, always on the same data; ended with the test."""
    started: list[Dev] = []

    def start(*options: str, **environ: str) -> Dev:
        started.append(Dev(tmp_path, options, environ))
        return started[-1]

    yield start
    for dev in started:
        dev.process.kill()
        dev.process.wait()
        eventually(dev.is_gone)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A whole `arkloop dev` with a plugin, for tests that leave it in working order."""
    folder = tmp_path_factory.mktemp("dev")
    for name, text in PLUGIN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    started = Dev(folder, ("--api-workers", "1"), {"ARKLOOP_RETENTION_DAYS": "8"})
    yield started.wait_until_ready()
    started.process.kill()
    started.process.wait()
    eventually(started.is_gone)


def test_one_command_starts_everything(dev: Dev) -> None:
    """Ready means ready: the key works, and the routes are there."""
    eventually(dev.is_healthy)  # its worker takes a moment longer than the API
    assert 0o600 == stat.S_IMODE((dev.data / "api-key").stat().st_mode)
    assert f"{dev.url}\n" == (dev.data / "url").read_text()
    assert "dev" == dev.get("/v1/me")["org_name"]
    assert not dev.get("/v1/me/credits")["is_prepaid"]
    assert "Arkloop Runs" in httpx2.get(f"{dev.url}/console", timeout=60).text
    eventually(lambda: f"The console is at {dev.url}/console" in dev.output)
    eventually(lambda: f" {dev.url}/v1/runs" in dev.output)
    assert "8" == dev.named("gunicorn").environ()["ARKLOOP_RETENTION_DAYS"], "and .env has 7"
    assert ".env: not settings of this service, ignored: PYTHONPATH" in dev.output
    assert "/of/another/program" != dev.named("gunicorn").environ().get("PYTHONPATH")
    attacker = {"Host": "attacker.example"}
    rebound = httpx2.get(f"{dev.url}/healthz", headers=attacker, timeout=60)
    assert 403 == rebound.status_code, "the name of a web page that leads here (DNS rebinding)"
    loopback = {"name": "ours", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"}
    assert loopback["base_url"] == dev.post("/v1/llm-providers", loopback)["base_url"]
    server = {"name": "ours", "url": "http://localhost:9/mcp"}
    assert server["url"] == dev.post("/v1/mcp-configs", server)["url"]
    routes = {route["id"] for route in dev.get("/v1/routes")}
    assert ({"scripted", "local"} if local_model.installed() else {"scripted"}) <= routes


@pytest.mark.timeout(300)
@pytest.mark.skipif(not local_model.installed(), reason="no wheel of the model for this machine")
def test_a_thread_that_got_too_long_for_the_local_model_goes_on(dev: Dev) -> None:
    """What is older is left out, and its run says so."""
    thread = dev.post("/v1/threads", {"title": "long"})["id"]
    # Of 6,000 tokens; a request may have 4,096. The rest is short: this machine is to read it.
    for said in ("We went to the park and it was a fine day. " * 540, "Say hello."):
        dev.post(f"/v1/threads/{thread}/messages", {"content": said})
    how = {"route_id": "local", "persona_id": "plain@1"}
    with dev.client() as client:
        started = client.post(f"/v1/threads/{thread}/runs", json=how)
        run = f"/v1/runs/{started.json()['run_id']}"
        eventually(lambda: dev.get(run)["status"] in ("completed", "failed"), 200)
        stream = client.get(f"{run}/events", params={"follow": "false"}).text

    assert "completed" == dev.get(run)["status"], dev.get(run)["error"]
    assert '"type":"context.truncated"' in stream


def test_a_kill_leaves_no_process_and_all_the_data(start_dev: StartDev) -> None:
    """After SIGKILL the next start continues with what was there, without conflicts."""
    killed = start_dev(*SMALL).wait_until_ready()
    thread = killed.post("/v1/threads", {"title": "kept"})
    key = (killed.data / "api-key").read_text()

    killed.process.kill()
    again = start_dev(*SMALL).wait_until_ready()

    eventually(killed.is_gone)
    assert "kept" == again.get(f"/v1/threads/{thread['id']}")["title"]
    assert key == (again.data / "api-key").read_text()

    second = start_dev(*SMALL)
    assert 1 == second.process.wait(60)
    assert "is in use by another arkloop dev" in second.output
    assert "kept" == again.get(f"/v1/threads/{thread['id']}")["title"]

    again.process.send_signal(signal.SIGINT)
    assert 0 == again.process.wait(60)
    eventually(again.is_gone)


def test_what_dies_is_started_again(dev: Dev) -> None:
    """API, worker and both servers come back by themselves, and a run goes through."""
    eventually(dev.is_healthy)
    victims = [dev.named(text) for text in ("gunicorn", "celery", "bin/postgres", "-server 127")]

    for victim in victims:
        victim.kill()
    names = ("web.1", "worker.1", "postgres", "redis")
    eventually(lambda: all(f"{name} was ended by SIGKILL" in dev.output for name in names))
    eventually(dev.is_healthy)
    dev.remember()

    thread = dev.post("/v1/threads", {})["id"]
    dev.post(f"/v1/threads/{thread}/messages", {"content": "hello"})
    run = dev.post(f"/v1/threads/{thread}/runs", {"route_id": "scripted"})["run_id"]
    eventually(lambda: "running" != dev.get(f"/v1/runs/{run}")["status"])
    assert "completed" == dev.get(f"/v1/runs/{run}")["status"]
    assert not any(map(is_alive, victims))


def test_a_plugin_is_reloaded_when_its_files_change(dev: Dev) -> None:
    """A changed tool and a new persona are used without a restart by hand."""

    def output(persona_id: str) -> str:
        """Return the plugin's output in a new run, or nothing."""
        call = json.dumps({"script": [{"tool": "price"}]})
        choice = {"message": call, "persona_id": persona_id, "route_id": "scripted"}
        with dev.client() as client, suppress(httpx2.HTTPError):
            run = client.post("/v1/runs", json=choice, headers={"Prefer": "wait=20"})
            events = f"/v1/runs/{run.json().get('run_id')}/events?follow=false"
            found = re.search(r'"output":"(.*?)"', client.get(events).text)
            return found[1] if found else ""
        return ""

    eventually(dev.is_healthy)
    folder = dev.data.parent / "plugins"
    assert "3 EUR" == output("shop@1")

    changed = PLUGIN["plugins/tools/price.py"].replace("PRICES['tea']", "'4 EUR'")
    (folder / "tools" / "price.py").write_text(changed)
    (folder / "personas" / "shop@2.yaml").write_text("tools: [price]")

    eventually(lambda: output("shop@2") == "4 EUR")
    eventually(dev.is_healthy)
    dev.remember()


def test_a_taken_port_is_told_before_anything_starts(start_dev: StartDev) -> None:
    """No database is made for a service that could not be reached."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        dev = start_dev(*SMALL, "--port", str(port))

        assert 1 == dev.process.wait(60)

    assert f"cannot listen on 127.0.0.1 port {port}" in dev.output
    assert not (dev.data / "postgres").exists()


def test_a_server_that_cannot_start_ends_the_command(start_dev: StartDev, tmp_path: Path) -> None:
    """A database of another major version ends it soon, with Postgres' own first error."""
    data = tmp_path / "data" / "postgres"
    with EmbeddedPostgres(data, options={"fsync": "off"}):
        pass
    (data / "PG_VERSION").write_text("14\n")
    began = time.monotonic()

    dev = start_dev(*SMALL)

    assert 1 == dev.process.wait(60)
    assert time.monotonic() < began + 29
    error = dev.output.partition("Error: postgres did not start: ")[2]
    assert "initialized by PostgreSQL version 14" in error
    eventually(dev.is_gone)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Postgres and a Redis of somebody else, as settings."""
    postgres = EmbeddedPostgres(tmp_path / "theirs" / "postgres", options={"fsync": "off"})
    with postgres, EmbeddedRedis(tmp_path / "theirs" / "redis", persist=False) as redis:
        yield {"ARKLOOP_DATABASE_URL": postgres.url, "ARKLOOP_REDIS_URL": redis.url}


def test_named_servers_are_used_instead_of_embedded_ones(
    start_dev: StartDev, servers: dict[str, str]
) -> None:
    """With both URLs set no server of its own is started, and SIGTERM ends the rest."""
    dev = start_dev(*SMALL, **servers).wait_until_ready()

    assert "dev" == dev.get("/v1/me")["org_name"]
    assert not (dev.data / "postgres").exists()
    assert not (dev.data / "redis").exists()

    dev.process.terminate()

    assert 0 == dev.process.wait(60)
    eventually(dev.is_gone)
    assert not (dev.data / "url").exists()


def platform_commands(folder: Path) -> Path:
    """Make a folder with the commands of the dependencies, and without `arkloop`.

    A buildpack installs `requirements.txt`, which has everything but the project itself.
    """
    commands = folder / "bin"
    commands.mkdir()
    for name in ("python", "gunicorn", "celery"):
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec {BIN / name} "$@"\n')
        command.chmod(0o755)
    return commands


def test_honcho_runs_the_same_procfile(servers: dict[str, str], tmp_path: Path) -> None:
    """The Procfile starts with a platform's variables and the commands that a buildpack
    installs.
    """
    port = free_port()
    database = servers["ARKLOOP_DATABASE_URL"].partition("://")[2]
    environ = BARE | {
        "PATH": f"{platform_commands(tmp_path)}{os.pathsep}{os.defpath}",
        "DATABASE_URL": f"postgres://{database}&sslmode=prefer",
        "REDIS_URL": servers["ARKLOOP_REDIS_URL"],
        "WEB_CONCURRENCY": "1",
        "ARKLOOP_JWT_SECRET": "j" * 32,
    }
    release, _lines = read_procfile(ROOT / "Procfile")
    subprocess.run(["/bin/sh", "-c", str(release)], env=environ, cwd=ROOT, check=True)
    argv = [BIN / "honcho", "start", "--port", str(port), "web", "worker"]
    honcho = subprocess.Popen(
        argv, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    tree = [psutil.Process(honcho.pid)]
    try:

        def is_ready() -> bool:
            try:
                answer = httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
            except httpx2.HTTPError:
                return False
            return answer.status_code == 200

        eventually(is_ready)
        tree += tree[0].children(recursive=True)
        commands = {process: " ".join(process.cmdline()) for process in tree}
        [worker] = [process for process, command in commands.items() if "celery" in command]
        [*web] = [process for process, command in commands.items() if "gunicorn" in command]
        assert {os.nice(0)} == {process.nice() for process in web}
        eventually(lambda: worker.nice() == max(os.nice(0), 5))  # it may start after them
    finally:
        honcho.terminate()
        honcho.wait(60)
    eventually(lambda: not any(map(is_alive, tree)))
