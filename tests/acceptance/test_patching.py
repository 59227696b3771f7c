"""Web and worker processes as the Procfile starts them: nothing in them waits natively."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from arkloop.cli.dev.dev import path_of_children, read_procfile
from tests.waiting import eventually
from tests.web_server import ROOT

pytestmark = pytest.mark.processes

#: Loaded by the interpreter or by gevent itself before anything can be patched, and harmless: C
#: modules are where the originals come from, and no greenlet waits in the rest, or not in here.
ALLOWED = {
    # Agents have native threads, which wait for nothing but what these make.
    "arkloop.shared.native_threads.new_lock = threading.Lock",
    "arkloop.shared.native_threads.start_thread = threading._start_new_thread",
    # Code in them that waits in vain is slowed down by pauses, which hold up no greenlet of others.
    "arkloop.shared.native_threads._sleep = time.sleep",
    # Counts are added under it, also by these threads; nothing waits while it is held.
    "arkloop.shared.monitoring.exposition.new_lock = threading.Lock",
    # A step with a time limit is another of these threads, and the agent's own waits for it.
    "arkloop.worker.attempt.agent_run.new_lock = threading.Lock",
    "arkloop.worker.attempt.agent_run.start_thread = threading._start_new_thread",
    "functools.RLock = threading._CRLock",  # of `cached_property`: the one thread may always enter
    "reprlib.get_ident = threading.get_ident",
    "tempfile._allocate_lock = threading.Lock",
    "tempfile._once_lock = a lock",  # held while a name is made
    "threading._LockType = threading.Lock",  # of Python 3.13, which calls it by the other name
    "threading._main_thread._gevent_real_tstate_lock = a lock",
    "threading._shutdown_locks_lock = a lock",
}
C_MODULES = ("_posixsubprocess.", "_queue.", "_signal.", "_socket.", "_thread.", "posix.")
ALLOWED_IN_WEB = {
    # They never wait: called with a time-out of 0.
    "arkloop.api.streaming.disconnects._epoll = select.epoll",
    "arkloop.api.streaming.disconnects._poll = select.poll",
    # Gunicorn's master loads `ssl` before it forks. gevent replaces what makes connections of it;
    # these two serve `get_server_certificate` alone.
    "ssl.create_connection = socket.create_connection",
    "ssl.socket = socket.socket",
}
#: Looks at the process once it serves.
PROBES = {
    "worker": """
from celery import signals
from arkloop.worker.app import app
from probing import look_soon
signals.worker_ready.connect(look_soon, weak=False)
""",
    "web": """
from arkloop.api.app import create_app as create
from probing import look_soon
def create_app():
    look_soon()
    return create()
""",
    "probing": """
import threading, time
from pathlib import Path
from tests import native_primitives
def look_soon(**_):
    def look():
        time.sleep(0.5)
        native_primitives.write(Path(__file__).with_name("found.json"))
    threading.Thread(target=look).start()
""",
}


@pytest.mark.parametrize("role", ["web", "worker"])
def test_no_module_holds_what_gevent_has_replaced(
    role: str, tmp_path: Path, new_database: Callable[[], str], redis_url: str
) -> None:
    """A sleep, a select, a socket or a lock from before the patching would stop every greenlet."""
    found = _found_in(role, tmp_path, new_database(), redis_url)

    held = {one for one in found if not one.startswith(C_MODULES)}
    assert set() == held - ALLOWED - (ALLOWED_IN_WEB if role == "web" else set())


def test_a_worker_that_the_celery_command_starts_is_patched_too(
    tmp_path: Path, new_database: Callable[[], str], redis_url: str
) -> None:
    """It loads kombu halfway through the patching; the worker then begins again, patched first."""
    line = read_procfile(ROOT / "Procfile")[1]["worker"]
    line = line.replace("python -m gevent.monkey --module celery", "celery")

    found = _found_in("worker", tmp_path, new_database(), redis_url, line)

    assert not [one for one in found if one.startswith("kombu.")]


def _found_in(
    role: str, folder: Path, database_url: str, redis_url: str, line: str | None = None
) -> list[str]:
    line = line or read_procfile(ROOT / "Procfile")[1][role]
    line = line.replace("arkloop.worker.app", "worker_probe")
    line = line.replace("arkloop.api.app:", "web_probe:")
    for name, code in PROBES.items():
        (folder / f"{name}_probe.py".replace("probing_probe", "probing")).write_text(code)
    environ = {
        "PATH": path_of_children(),
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "PYTHONWARNINGS": "ignore:You're running the worker with superuser",
        "ARKLOOP_DATABASE_URL": database_url,
        "ARKLOOP_REDIS_URL": redis_url,
        "ARKLOOP_JWT_SECRET": "0" * 64,
        "ARKLOOP_PORT": "0",
        "ARKLOOP_API_WORKERS": "1",
        "OPENAI_API_KEY": "none",
        "ANTHROPIC_API_KEY": "none",
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", line], cwd=ROOT, env=environ, stdout=output, stderr=output
        )
    result = folder / "found.json"
    try:
        eventually(lambda: result.exists() or process.poll() is not None, seconds=200)
        assert process.poll() is None, log.read_text()
        return list(json.loads(result.read_text()))
    finally:
        process.kill()
        process.wait(60)
