"""The worker's composition root: `celery --app worker.app worker --pool gevent`."""
# ruff: noqa: E402 # SIGTERM is heard while the rest is imported, which takes seconds

import signal
import sys

# A signal without a handler does not end process 1, which a worker is in a container. Celery sets
# its own handler after the wait for the schema.
signal.signal(signal.SIGTERM, lambda *_: sys.exit())

import gc
import logging
import os
import threading
import time
from typing import Any, NoReturn

import gevent
from celery import bootsteps, signals
from celery.apps import worker as celery_program
from celery.worker.state import maybe_shutdown
from gevent import monkey
from kombu.utils import functional

from arkloop.shared import fault_points, logs, machine, plugins
from arkloop.shared.catalog import llm_providers, model_routes, personas
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.files.configured_storage import storage_of
from arkloop.shared.files.storage import UnusableStorage
from arkloop.shared.monitoring import exposition
from arkloop.shared.outage_log import OutageLog, reason_of
from arkloop.shared.plugins import InvalidPlugin
from arkloop.shared.security import process_memory, program_user
from arkloop.shared.storage import celery_app, rewinds, server_checks
from arkloop.shared.storage.connections import Connections, connect
from arkloop.worker import poller, providers, tasks, tools
from arkloop.worker.process import priority
from arkloop.worker.process.process import WorkerProcess

log = logging.getLogger(__name__)

#: Between two questions to a Postgres that is away.
WAIT_SECONDS = 1.0

_kombus_sleep = functional.sleep  # type: ignore[attr-defined]  # not exported, but it waits by it
if monkey.is_module_patched("time") and _kombus_sleep is not time.sleep:
    # The `celery` command loads kombu while gevent is still patching, so that kombu's waits between
    # two attempts to reconnect would stop every greenlet of this process. The Procfile patches
    # before anything else is loaded; a worker that is started otherwise gets the same here.
    patched = [sys.executable, "-m", "gevent.monkey", "--module", "celery", *sys.argv[1:]]
    os.execv(sys.executable, patched)  # noqa: S606  # this program, no shell

# Until everything is loaded: the SDKs are a million objects, and to walk through them again and
# again takes a fifth of the start.
gc.disable()
# Else gevent keeps for each greenlet where it was started, which takes time and memory.
gevent.config.track_greenlet_tree = False
machine.raise_file_limit()
logs.configure()  # what Celery says before it sets up logging is JSON as well
# In its signal handler Celery writes plain text between the lines of the log.
celery_program.safe_say = lambda *_: None


def _refuse_to_start(reason: str) -> NoReturn:
    """End the process with a text, in one write with its end of line.

    Python would make two of them, and lines of the log might be written in between.
    """
    sys.stderr.write(f"{reason}\n")
    sys.exit(1)


try:
    settings = Settings.from_env()
    priority.lower(settings.worker_niceness)  # memory that is closed leaves it to root
    if not settings.core_dumps:
        process_memory.close()
    if settings.mcp_stdio:
        program_user.of(settings.mcp_stdio_user)  # reported now, as what else is wrong
    fault_points.arm(settings)
    exposition.prepare(settings)
    plugins.use(settings.plugins)
    routes = model_routes.load(settings)
    personas.builtin()
except (InvalidSettings, personas.InvalidPersona, InvalidPlugin) as problems:
    _refuse_to_start(f"Invalid configuration:\n{problems}")

try:
    # A wrong file is reported now, and not by the runs that need it.
    tools.load([*personas.BUILTIN_TOOLS, *tools.AUTOMATIC_TOOLS, *tools.FAULT_TOOLS])
    tools.load(plugins.names("tools"))
    for group in plugins.GROUPS:
        plugins.load(group)
except (InvalidPlugin, tools.InvalidTool, tools.UnknownTool) as problem:
    _refuse_to_start(f"A tool or plugin cannot be used:\n{problem}")

providers.prepare(routes.values())
app = celery_app.make_celery(settings, concurrency=settings.worker_concurrency)
_processes: dict[int, WorkerProcess] = {}
_lock = threading.Lock()


def process() -> WorkerProcess:
    """Return the one `WorkerProcess` of this operating system process, made at the first call."""
    with _lock:
        if os.getpid() not in _processes:
            _processes[os.getpid()] = started = WorkerProcess(settings, routes)
            poller.start(started)
        return _processes[os.getpid()]


tasks.register(app, process)


@signals.setup_logging.connect
def _keep_logs(**_: Any) -> None:
    """Keep Celery from setting up logging, by listening for its wish to."""


@signals.celeryd_after_setup.connect
def _wait_for_schema(**_: Any) -> None:
    """Start nothing on a database that was not migrated yet, nor on servers that cannot be used.

    Logging is set up by now.
    """
    waiting = connect(settings, application="arkloop-worker", pool_size=1)
    waiting.wait_for_schema(threading.Event())
    try:
        server_checks.check(waiting)
        storage_of(settings).check()
        _prepare_providers_of_orgs(waiting)
    except (server_checks.UnsuitableServer, UnusableStorage) as error:
        _refuse_to_start(str(error))
    finally:
        waiting.close()


def _prepare_providers_of_orgs(connections: Connections) -> None:
    """Import the SDKs of the kinds that orgs have; the first run with another kind imports it."""
    try:
        with connections.reading() as sql:
            # A newer version of the service, before a roll back, may have stored others.
            kinds = [kind for kind in llm_providers.kinds(sql) if kind in llm_providers.KINDS]
    except Unavailable:
        kinds = [*llm_providers.KINDS]
    providers.prepare((), also=kinds)


class _Start(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Starts the process before Celery's consumer, which waits for as long as the broker is away.

    Runs are found in Postgres meanwhile.
    """

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - as Celery reads it

    _exporter: Any = None

    def start(self, _worker: Any) -> None:
        exposition.count(settings)
        _wait_for_installation(process().connections)
        celery_app.name_queue(app, process().connections.keys)
        celery_app.limit_messages(app, lambda: process().free_slots)
        exposition.listen(process().connections)
        if settings.otlp_url:
            from arkloop.shared.monitoring import span_export

            self._exporter = span_export.start(settings, "arkloop-worker")
        # What is there now stays: a full collection would stop all runs to walk through it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(1_000, 10, 50)
        gc.enable()

    def stop(self, _worker: Any) -> None:
        """Drain the process, also where Celery stops without a signal: its pool waits for its own
        tasks alone, and not for the runs that were found in Postgres.
        """
        log.info("draining")
        process().drain()
        process().wait_until_drained()
        if self._exporter is not None:
            self._exporter.stop()


app.steps["worker"].add(_Start)


def _wait_for_installation(connections: Connections) -> None:
    """Wait until Postgres says which one this is: without it there is nothing to execute either."""
    outage = OutageLog(log, "Postgres")
    while True:
        maybe_shutdown()
        try:
            rewinds.check(connections)
            outage.worked()
        except Unavailable as error:
            outage.failed("waiting for Postgres: %s", reason_of(error))
        if connections.keys.installation:
            return
        time.sleep(WAIT_SECONDS)


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    if os.getpid() in _processes:
        _processes[os.getpid()].drain()


@signals.worker_shutdown.connect
def _close(**_: Any) -> None:
    if os.getpid() in _processes:
        _processes[os.getpid()].close()
    # After SIGHUP Celery replaces the program before the writer of lines is asked to finish.
    logs.handler().flush()
