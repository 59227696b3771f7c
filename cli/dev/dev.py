"""`arkloop dev`: the whole service on this machine, in the processes that production runs."""

import os
import pwd
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from arkloop.cli.client.server_address import DEFAULT_FOLDER, leads_to_loopback
from arkloop.cli.dev import env_file, local_model, plugin_watch, welcome
from arkloop.cli.dev.data_folder import DataFolder, DataFolderInUse
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.cli.dev.embedded_server import (
    RETRY_SECONDS,
    EmbeddedServer,
    ServerDidNotStart,
    free_port,
)
from arkloop.cli.dev.guard import guarded, orphaned
from arkloop.cli.dev.prefixed_output import PrefixedOutput
from arkloop.cli.dev.readiness import answers, problem_of
from arkloop.cli.dev.supervisor import Process, Supervisor
from arkloop.shared import machine

#: The Procfile of the repository: here it is a link, and in a wheel a copy.
PROCFILE = Path(__file__).with_name("Procfile")
SERVER_READY_SECONDS = 60
#: Ready is announced without the model after this; its first answers may then be retried.
MODEL_READY_SECONDS = 15
#: After this the output says what `/readyz` reports; supervising continues.
SLOW_START_SECONDS = 60
#: Nobody waits for an order that was killed itself.
ORPHANED_STOP_SECONDS = 2
#: 10 USD: those who register on a developer's machine may try the server's routes.
NEW_ORG_CREDITS = 10_000
STOP_APPLICATION, STOP_REDIS, STOP_POSTGRES = range(3)

_MAKE_KEY = (
    "import os, pathlib; from arkloop.cli.operator.users import ensure_dev_key; "
    "ensure_dev_key(os.environ['ARKLOOP_DATABASE_URL'], pathlib.Path(os.environ['_ARKLOOP_KEY']))"
)


class CannotStart(Exception):
    """The command ends with status 1 and this message."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command's options; `local_model` None means: if it is installed."""

    host: str
    port: int
    data: Path
    api_workers: int
    workers: int
    concurrency: int
    local_model: bool | None


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help=("Port to listen on; 0 picks a free one."),
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    envvar="ARKLOOP_DATA",
    help="Folder of the databases, the secrets and the API key.",
)
@click.option(
    "--api-workers",
    type=click.IntRange(1),
    default=lambda: machine.web_processes(machine.cores()),
    show_default="half the cores, 2 on two",
    help="gunicorn workers.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=lambda: machine.worker_processes(machine.cores()),
    show_default="a quarter of the cores, at least 2 on several",
    help="Worker processes.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Runs that one worker executes at a time.",
)
@click.option(
    "--local-model/--no-local-model",
    default=None,
    help="Serve the small real model; by default if it is installed.",
)
def dev(**options: Any) -> None:
    """Run everything on this machine: Postgres, Redis, API, workers and a small model.

    Servers named in ARKLOOP_DATABASE_URL and ARKLOOP_REDIS_URL are used instead of embedded ones.
    Settings may be in the file .env of this folder; the environment's take precedence.
    """
    _read_env_file(Path(".env"))
    guard = os.getpid()
    sys.exit(guarded(lambda: supervise(Options(**options), guard)))


def _read_env_file(path: Path) -> None:
    """Take the settings of the file into the environment, and name what else is in it."""
    try:
        variables = env_file.read(path)
    except (env_file.InvalidEnvFile, OSError) as error:
        raise click.ClickException(str(error)) from None
    settings = env_file.settings_in(os.environ, variables)
    if ignored := ", ".join(sorted(variables.keys() - settings.keys())):
        click.echo(f"{path}: not settings of this service, ignored: {ignored}", err=True)
    os.environ.update(env_file.missing_in(os.environ, settings))


def supervise(options: Options, guard: int) -> int:
    """Start everything and keep it alive until a signal comes; the exit status.

    `guard` is the process that the user started.
    """
    machine.raise_file_limit()
    try:
        with ExitStack() as stack:
            folder = DataFolder(options.data)
            stack.enter_context(folder.locked(guard))
            port = claim_port(options.host, options.port)
            environment = _environment(options, port, folder)
            supervisor = Supervisor(PrefixedOutput())
            try:
                _start_all(supervisor, options, environment, folder, stack)
                supervisor.run()
            finally:
                bound = ORPHANED_STOP_SECONDS if orphaned(guard) else None
                supervisor.stop(longest_seconds=bound)
                folder.url.unlink(missing_ok=True)
    except (CannotStart, DataFolderInUse, ServerDidNotStart, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def claim_port(host: str, port: int) -> int:
    """Return the port to listen on; refuses one in use, before anything is started."""
    try:
        family, kind, _protocol, _name, address = socket.getaddrinfo(
            host, port or free_port(), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            # As gunicorn does: a connection that is still closing does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise CannotStart(
            f"cannot listen on {host} port {port}: {error.strerror}. "
            "Stop the process that listens there, or choose another --port (0 picks a free one)"
        ) from error


def _environment(options: Options, port: int, folder: DataFolder) -> dict[str, str]:
    """Build the environment of the child processes, without the servers' URLs."""
    environment = dict(os.environ)
    environment.update(
        folder.secrets(os.environ),
        ARKLOOP_HOST=options.host,
        ARKLOOP_PORT=str(port),
        ARKLOOP_API_WORKERS=str(options.api_workers),
        ARKLOOP_WORKER_CONCURRENCY=str(options.concurrency),
        PATH=path_of_children(),
        PYTHONUNBUFFERED="1",
    )
    # IP addresses are always allowed. Without this any web page could talk to this server as one
    # of its own (DNS rebinding).
    hosts = ["localhost", _name_of(options.host), os.environ.get("ARKLOOP_ALLOWED_HOSTS", "")]
    environment["ARKLOOP_ALLOWED_HOSTS"] = ",".join(filter(None, hosts))
    if leads_to_loopback(options.host):
        # A developer's own providers, servers and programs. Who can reach this server from another
        # machine must not reach what only this machine can.
        environment.setdefault("ARKLOOP_ALLOWED_NETWORKS", "127.0.0.0/8,::1/128")
        environment.setdefault("ARKLOOP_MCP_STDIO", "1")
        environment.setdefault("ARKLOOP_MCP_STDIO_USER", pwd.getpwuid(os.geteuid()).pw_name)
        environment.setdefault("ARKLOOP_PUBLIC_URL", f"http://127.0.0.1:{port}")
    environment.setdefault("ARKLOOP_CORE_DUMPS", "1")  # debuggers attach without being root
    environment.setdefault("ARKLOOP_REGISTRATION", "open")
    environment.setdefault("ARKLOOP_NEW_ORG_CREDITS", str(NEW_ORG_CREDITS))
    environment.setdefault("ARKLOOP_SCRIPTED", "1")
    environment.setdefault("ARKLOOP_FILES_DIR", str(folder.files))
    environment.setdefault("ARKLOOP_SECURE_COOKIES", "0")  # plain HTTP: none would be sent back
    if os.geteuid() == 0:
        # Celery's word for root is right for servers; the user who runs this as root knows.
        environment.setdefault("PYTHONWARNINGS", "ignore:You're running the worker with superuser")
    return environment


def _name_of(host: str) -> str:
    """Return the host if it is a name and not an IP address, else an empty text."""
    try:
        ip_address(host)
    except ValueError:
        return host
    return ""


def path_of_children() -> str:
    """Return PATH with this virtual environment's commands in front, whatever the caller's is."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def _start_all(
    supervisor: Supervisor,
    options: Options,
    environment: dict[str, str],
    folder: DataFolder,
    stack: ExitStack,
) -> None:
    """Start everything, in the order in which one thing needs another; up to `Ready on …`."""
    model_url = _start_model(supervisor, options, environment)
    _start_servers(supervisor, options, environment, folder, stack)
    release, lines = read_procfile(PROCFILE)
    if supervisor.stop_requests:
        return
    if release is not None:
        _run_once(supervisor, _shell("release", release, environment))
    if supervisor.stop_requests:
        return
    names = []
    for name, line in lines.items():
        for number in range(1, (options.workers if name == "worker" else 1) + 1):
            names.append(f"{name}.{number}")
            supervisor.start(_shell(names[-1], line, environment))
    plugin_watch.start(supervisor, environment.get("ARKLOOP_PLUGINS", "").split(":"), names)
    # While these load their code: Ready means that both are there.
    key = {**environment, "_ARKLOOP_KEY": str(folder.api_key)}
    argv = [sys.executable, "-c", _MAKE_KEY]
    _run_once(supervisor, Process(name="key", argv=argv, env=key, cwd=Path.cwd()))
    url = base_url(options.host, int(environment["ARKLOOP_PORT"]))
    _wait_for_ready(supervisor, url)
    if model_url is not None and not supervisor.wait(
        lambda: answers(f"{model_url}/models"), MODEL_READY_SECONDS
    ):
        supervisor.output.plain("The local model is not ready yet.")
    if not supervisor.stop_requests:
        folder.url.write_text(f"{url}\n")
        supervisor.output.plain(f"Ready on {url}")
        is_there = model_url is not None
        for line in welcome.lines(url, folder, supervisor.output, has_model=is_there):
            supervisor.output.plain(line)


def _start_model(
    supervisor: Supervisor, options: Options, environment: dict[str, str]
) -> str | None:
    """Start the local model; returns its base URL, None if it is not installed or not used."""
    if options.local_model is None:
        wanted = local_model.installed() and not environment.get("ARKLOOP_LOCAL_BASE_URL")
    else:
        wanted = options.local_model
    if not wanted:
        return None
    if not local_model.installed():
        raise CannotStart("the local model is not installed: run `make setup`")
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    environment.update(
        ARKLOOP_LOCAL_BASE_URL=url,
        ARKLOOP_LOCAL_MODEL=local_model.MODEL,
        ARKLOOP_LOCAL_CONTEXT_TOKENS=str(local_model.THREAD_TOKENS),
    )
    argv = [sys.executable, "-m", "arkloop.cli.dev.local_model", "--port", str(port)]
    supervisor.start(
        Process(name="model", argv=argv, env=environment, cwd=Path.cwd(), stop_seconds=2)
    )
    return url


def _start_servers(
    supervisor: Supervisor,
    options: Options,
    environment: dict[str, str],
    folder: DataFolder,
    stack: ExitStack,
) -> None:
    """Start the servers that the environment does not name, and wait until they answer."""
    servers: list[tuple[EmbeddedServer, int]] = []
    if not environment.get("ARKLOOP_DATABASE_URL"):
        connections = max(200, 50 + 25 * (options.workers + options.api_workers))
        postgres = EmbeddedPostgres(folder.postgres, options={"max_connections": str(connections)})
        environment["ARKLOOP_DATABASE_URL"] = postgres.url
        for other in ("ARKLOOP_DIRECT_DATABASE_URL", "ARKLOOP_OWNER_DATABASE_URL"):
            environment.pop(other, None)
        servers.append((postgres, STOP_POSTGRES))
    if not environment.get("ARKLOOP_REDIS_URL"):
        redis = EmbeddedRedis(folder.redis)
        environment["ARKLOOP_REDIS_URL"] = redis.url
        servers.append((redis, STOP_REDIS))
    for server, stop_rank in servers:
        stack.callback(server.close)
        process = Process(
            name=server.name,
            argv=server.command(),
            is_tied=True,
            prepare=server.prepare,
            stop_signal=server.stop_signal,
            stop_rank=stop_rank,
        )
        supervisor.start(process)
    for server, _stop_rank in servers:
        _wait_until_up(supervisor, server)


def _wait_until_up(supervisor: Supervisor, server: EmbeddedServer) -> None:
    """Return when the server is ready, or a stop is requested.

    Raises:
        CannotStart: it keeps failing, or is not ready in time.
    """

    def is_ready() -> bool:
        pid = supervisor.pid_of(server.name)
        return pid is not None and server.is_ready(pid)

    def keeps_failing() -> bool:
        failure = supervisor.failure_of(server.name)
        if failure is None or supervisor.pid_of(server.name) is not None:
            return False
        return time.monotonic() > failure.at + RETRY_SECONDS

    supervisor.wait(lambda: is_ready() or keeps_failing(), SERVER_READY_SECONDS)
    if supervisor.stop_requests or is_ready():
        return
    failure = supervisor.failure_of(server.name)
    reason = failure.reason if failure else f"it is not ready after {SERVER_READY_SECONDS} s"
    raise CannotStart(f"{server.name} did not start: {reason}")


def read_procfile(path: Path) -> tuple[str | None, dict[str, str]]:
    """Return the `release` line, if there is one, and all the others by name."""
    lines = dict(re.findall(r"^([\w-]+):[ \t]*(.+)$", path.read_text(), re.MULTILINE))
    return lines.pop("release", None), lines


def _shell(name: str, line: str, environment: Mapping[str, str]) -> Process:
    return Process(
        name=name,
        argv=["/bin/sh", "-c", line],
        env=environment,
        cwd=Path.cwd(),
        # Gunicorn starts new workers before it stops those with the old code.
        reload_signal=signal.SIGHUP if name.startswith("web") else None,
    )


def _run_once(supervisor: Supervisor, process: Process) -> None:
    status = supervisor.run_once(process)
    if status:
        raise CannotStart(f"{process.name} failed with status {status}; its output is above")


def base_url(host: str, port: int) -> str:
    """Return the URL at which a client on this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _wait_for_ready(supervisor: Supervisor, url: str) -> None:
    while not supervisor.wait(lambda: problem_of(url) is None, SLOW_START_SECONDS):
        if supervisor.stop_requests:
            return
        problem = problem_of(url)
        supervisor.output.plain(f"Still not ready (/readyz: {problem}); see the output above")
