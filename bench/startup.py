"""The cost of start-up: the time until `web` and `worker` serve, and the memory they hold then.

Beside each stands what the fixed stack costs by itself: a process that imports Flask, gunicorn,
gevent, SQLAlchemy, psycopg, redis and Celery, and does nothing.

    .venv/bin/python -m bench.startup [--rounds 7]
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx2
import psutil
from sqlalchemy import text

from arkloop.shared.storage.connections import Connections
from bench.figure import Figure, Limit
from bench.service import READY_SECONDS, ROOT, Service

MIB = 1 << 20
#: Processes run as if production's requirements.txt were all that is installed: Celery imports this
#: wherever it finds it.
DEVELOPMENT_ONLY = ("psutil",)

_STACK = """
from gevent import monkey; monkey.patch_all()
import sqlalchemy.dialects.postgresql.psycopg, psycopg, redis, kombu.transport.redis
"""
_OF_WEB = (
    "import flask, marshmallow, gunicorn.app.wsgiapp, gunicorn.workers.ggevent, celery.app.base"
)
_OF_WORKER = "import celery.bin.celery, celery.apps.worker, celery.concurrency.gevent"

Start = Callable[[], AbstractContextManager[int]]


def measure(rounds: int = 7) -> list[Figure]:
    """Start `rounds` of each kind of process, one after the other, then one of each at once."""
    seconds: dict[str, list[float]] = {}
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        for name in DEVELOPMENT_ONLY:
            absent = f"raise ModuleNotFoundError(name={name!r})\n"
            (Path(folder) / f"{name}.py").write_text(absent)
        environ = {"PYTHONPATH": f"{folder}:{ROOT}"}
        service = opened.enter_context(Service(web=0, workers=0, environ=environ))
        starts = _starts(service)
        for _ in range(rounds):
            for name, start in starts.items():
                began = time.monotonic()
                with start():
                    seconds.setdefault(name, []).append(time.monotonic() - began)
        # At once, because what several processes share counts for none of them.
        pids = {name: opened.enter_context(start()) for name, start in starts.items()}
        runs = _runs(service, rounds + 1)
        memory = {name: psutil.Process(pid).memory_full_info() for name, pid in pids.items()}
        [serving] = psutil.Process(pids["web"]).children()
        memory["web process"] = serving.memory_full_info()

    def time_of(figure: str, name: str, limit: str) -> Figure:
        of, bare = ([second * 1000 for second in seconds[key]] for key in (name, limit))
        return Figure(
            name=figure,
            unit="ms",
            numbers={"p50": statistics.median(of), "best": min(of)},
            count=rounds,
            limit=Limit(name=limit, of="p50", value=statistics.median(bare)),
        )

    def memory_of(figure: str, name: str, limit: str) -> Figure:
        return Figure(
            name=figure,
            unit="MiB",
            numbers={"uss": memory[name].uss / MIB, "pss": memory[name].pss / MIB},
            count=1,
            limit=Limit(name=limit, of="uss", value=memory[limit].uss / MIB),
        )

    first, *later = (run * 1000 for run in runs)
    return [
        time_of("web: exec → 200 of /readyz", "web", "web stack"),
        time_of("worker: exec → row in workers", "worker", "worker stack"),
        time_of("worker with openai: exec → row in workers", "worker, openai", "worker stack"),
        Figure(
            name="first run of fresh processes: POST → end",
            unit="ms",
            numbers={"first": first},
            count=1,
            limit=Limit(name="later runs", of="first", value=statistics.median(later)),
        ),
        memory_of("memory of gunicorn's master", "web", "python"),
        memory_of("memory of a web process", "web process", "web stack"),
        memory_of("memory of a worker", "worker", "worker stack"),
        memory_of("memory of a worker with openai", "worker, openai", "worker stack"),
    ]


def _starts(service: Service) -> dict[str, Start]:
    """Return functions that start one process, are there when it serves, and end it with the
    block.
    """
    connections = service.connect()
    worker = partial(_worker, service, connections)
    return {
        "python": partial(_stack, service, ""),
        "web stack": partial(_stack, service, _STACK + _OF_WEB),
        "worker stack": partial(_stack, service, _STACK + _OF_WORKER),
        "web": partial(_web, service),
        "worker": worker,
        "worker, openai": partial(worker, environ={"OPENAI_API_KEY": "none"}),
    }


@contextmanager
def _stack(service: Service, imports: str) -> Iterator[int]:
    code = f"{imports}\nimport sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=service.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stdout.readline(), "the stack cannot be imported"
        yield process.pid
        process.communicate()


@contextmanager
def _web(service: Service) -> Iterator[int]:
    pid = service.start("web")
    with httpx2.Client(base_url=service.urls[-1], trust_env=False) as client:
        _wait(service, "web", lambda: client.get("/readyz").status_code == 200)
        yield pid
    _end(pid, signal.SIGTERM)


@contextmanager
def _worker(
    service: Service, connections: Connections, environ: Mapping[str, str] | None = None
) -> Iterator[int]:
    pid = service.start("worker", environ)
    with connections.reading() as sql:
        count = text("SELECT count(*) FROM workers WHERE pid = :pid")
        _wait(service, "worker", lambda: sql.scalar(count, {"pid": pid}) == 1)
    yield pid
    _end(pid, signal.SIGKILL)  # it holds nothing, and would listen to the broker for 3 s more


def _wait(service: Service, role: str, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx2.TransportError):
            if is_ready():
                return
        time.sleep(0.01)
    raise TimeoutError(f"{role} is not ready:\n{service.log(role)}")


def _end(pid: int, how: signal.Signals) -> None:
    os.kill(pid, how)
    psutil.Process(pid).wait()


def _runs(service: Service, count: int) -> list[float]:
    """Measure the seconds from POST to the end of the stream, of runs one after the other."""
    seconds = []
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx2.Client(base_url=f"{service.urls[-1]}/v1", headers=headers, trust_env=False) as http:
        for _ in range(count):
            thread = "/threads/" + http.post("/threads", json={}).json()["id"]
            http.post(f"{thread}/messages", json={"content": "Hello"}).raise_for_status()
            began = time.monotonic()
            run = http.post(f"{thread}/runs", json={"route_id": "scripted"}).json()["run_id"]
            events = http.get(f"/runs/{run}/events").text
            assert "run.completed" in events, events
            seconds.append(time.monotonic() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    for figure in measure(parser.parse_args().rounds):
        print(json.dumps(figure.row(), ensure_ascii=False))


if __name__ == "__main__":
    main()
