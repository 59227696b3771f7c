"""An upgrade from the release before under load, and the way back: no client notices either."""

import json
import os
import random
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource
from sqlalchemy import create_engine, text

from arkloop.cli.dev.dev import path_of_children, read_procfile
from arkloop.cli.dev.embedded_server import free_port
from tests import releases
from tests.caller import client, text_of
from tests.clients import PASSWORD
from tests.system import PACE
from tests.waiting import eventually
from tests.web_server import INHERITED, ROOT, answers

BEFORE = releases.before()
#: How long each mixture of releases serves; `make test-upgrade` sets a longer time.
SECONDS = float(os.environ.get("UPGRADE_SECONDS", "2"))
#: `make test-upgrade UPGRADE_RUNS_PER_SECOND=1` on a machine that others use.
RUNS_PER_SECOND = float(os.environ.get("UPGRADE_RUNS_PER_SECOND", "3"))
#: A run that has had no event for this many seconds is stuck.
SILENT_SECONDS = 120
#: So is one that still has events after this many: none takes longer, on the slowest machine.
ENDLESS_SECONDS = 420
#: As proxies do: a process gets no new requests for a while before it is stopped. A client that has
#: chosen it may have to wait for the processor before it connects.
DRAIN_SECONDS = 5

pytestmark = [
    pytest.mark.upgrade,
    pytest.mark.timeout(1800 + 5 * int(SECONDS)),
    pytest.mark.skipif(
        not os.environ.get("NEED_UPGRADE"), reason="it deploys under load: make test-upgrade"
    ),
    pytest.mark.skipif(
        not releases.is_known(BEFORE),
        reason=f"this clone lacks {BEFORE[:12]}: git fetch --unshallow --tags",
    ),
]


@dataclass(frozen=True)
class Pair:
    """A web process, where it listens, and a worker, of one release."""

    url: str
    web: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]


@dataclass
class Fleet:
    """The processes of one installation, each of one of two releases; `rotation` gets requests."""

    environ: Mapping[str, str]
    folder: Path
    rotation: list[str] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def run(self, source: Path, line: str) -> None:
        """Run a command of the release in `source`."""
        argv = ["/bin/sh", "-c", line]
        done = subprocess.run(argv, cwd=source, env=self._in(source), capture_output=True)
        assert 0 == done.returncode, done.stderr.decode()

    def start(self, source: Path) -> Pair:
        """Start a web and a worker process of the release; returns once they answer and have a
        lease, and the web process is in the rotation.
        """
        port = free_port()
        pair = Pair(
            f"http://127.0.0.1:{port}",
            self._start(source, "web", {"ARKLOOP_PORT": str(port)}),
            self._start(source, "worker", {}),
        )
        eventually(lambda: answers(pair.url), seconds=100)
        eventually(lambda: self._has_lease(pair.worker.pid), seconds=100)
        self.rotation.append(pair.url)
        return pair

    def stop(self, pair: Pair) -> None:
        """Take the web process out of the rotation, then stop both."""
        self.rotation.remove(pair.url)
        time.sleep(DRAIN_SECONDS)
        for process in (pair.web, pair.worker):
            process.send_signal(signal.SIGTERM)
        assert [0, 0] == [process.wait(60) for process in (pair.web, pair.worker)]

    def _has_lease(self, pid: int) -> bool:
        engine = create_engine(self.environ["ARKLOOP_DATABASE_URL"])
        with engine.connect() as sql:
            found = sql.scalar(text("SELECT count(*) FROM workers WHERE pid = :pid"), {"pid": pid})
        engine.dispose()
        return bool(found)

    def close(self) -> None:
        self._stack.close()

    def _start(self, source: Path, name: str, more: Mapping[str, str]) -> subprocess.Popen[bytes]:
        _, lines = read_procfile(source / "Procfile")
        log = self._stack.enter_context((self.folder / f"{name}-{source.name}.log").open("ab"))
        process = subprocess.Popen(
            ["/bin/sh", "-c", lines[name]],
            cwd=source,
            env=self._in(source) | more,
            stdout=log,
            stderr=log,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def _in(self, source: Path) -> dict[str, str]:
        return {**INHERITED, "PATH": path_of_children(), "PYTHONPATH": str(source), **self.environ}


@dataclass
class Load:
    """Clients that create runs and follow them, through whatever is in the rotation."""

    rotation: list[str]
    token: str
    problems: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    resumed: int = 0
    #: Seconds that each create took, and the longest that each stream was without an event.
    creates: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _http: dict[str, httpx.Client] = field(default_factory=dict)

    def run(self) -> None:
        """Create runs at a steady rate until `stop`; returns when all of them were followed."""
        with ThreadPoolExecutor(64) as clients:
            while not self._stopped.wait(1 / RUNS_PER_SECOND):
                clients.submit(self._one, len(self.created))
        for http in self._http.values():
            http.close()

    def stop(self) -> None:
        self._stopped.set()

    def figures(self) -> str:
        """Return what the clients have seen, in a line."""
        return (
            f"{len(self.created)} of {len(self.creates)} creates succeeded, the slowest in"
            f" {max(self.creates):.2f} s; {len(self.gaps)} runs ended, {self.resumed} of them"
            f" resumed by another worker; longest wait for an event {max(self.gaps):.1f} s;"
            f" {len(self.problems)} problems"
        )

    def _any(self) -> httpx.Client:
        """Return a client of one of the processes in the rotation."""
        url = random.choice(self.rotation)
        if url not in self._http:
            self._http[url] = client(url, self.token)
        return self._http[url]

    def _one(self, number: int) -> None:
        try:
            self._create_and_follow(number)
        except Exception as error:
            self.problems.append(f"run {number}: {type(error).__name__}: {error}")

    def _create_and_follow(self, number: int) -> None:
        # Every third run takes longer than a worker that stops waits for its runs: it is resumed.
        length = 15 if number % 3 else 150
        words = [f"w{number}.{position}" for position in range(length)]
        steps = [{"say": " ".join(words), "delay_ms": 60}]
        if number % 2:
            steps.insert(0, {"tool": "calculator", "args": {"expression": "6*7"}})
        message = {"script": steps}
        body = {"message": json.dumps(message)}
        began = time.monotonic()
        answer = self._any().post("/v1/runs", json=body)
        self.creates.append(time.monotonic() - began)
        if answer.status_code != 201:
            self.problems.append(f"create: HTTP {answer.status_code} {answer.text}")
            return
        run_id = answer.json()["run_id"]
        self.created.append(run_id)
        events, times = [], [time.monotonic()]
        for event in self._followed(run_id):
            events.append(event)
            times.append(time.monotonic())
        self.gaps.append(max(after - before for before, after in pairwise(times)))
        numbers = [event["seq"] for event in events]
        if numbers != list(range(1, len(events) + 1)):
            self.problems.append(f"{run_id}: the stream has the numbers {numbers}")
        if events[-1]["type"] != "run.completed":
            self.problems.append(f"{run_id}: ended with {events[-1]}")
        if text_of(events) != " ".join(words):
            self.problems.append(f"{run_id}: its text is {text_of(events)!r}")
        self.resumed += any(event["type"] == "run.resumed" for event in events)

    def _followed(self, run_id: str) -> Iterator[dict[str, Any]]:
        """Yield the events of the run up to its end, by as many streams as it takes."""
        end = time.monotonic() + ENDLESS_SECONDS
        seen, deadline = 0, time.monotonic() + SILENT_SECONDS
        while time.monotonic() < min(deadline, end):
            try:
                with self._any().stream(
                    "GET", f"/v1/runs/{run_id}/events", headers={"Last-Event-ID": str(seen)}
                ) as answer:
                    assert answer.status_code == 200, f"stream: HTTP {answer.status_code}"
                    for sent in EventSource(answer).iter_sse():
                        # A machine that has no time for us is slow, and no run is stuck.
                        seen, deadline = int(sent.id), time.monotonic() + SILENT_SECONDS
                        assert time.monotonic() < end, f"{run_id} has not ended: {sent.data}"
                        event = sent.json()
                        yield event
                        if event["type"] in ("run.completed", "run.failed", "run.cancelled"):
                            return
            except httpx.TransportError:
                time.sleep(0.1)
        run = self._any().get(f"/v1/runs/{run_id}").text
        raise AssertionError(f"no event in time after event {seen}: {run}")


@pytest.fixture
def fleet(new_database: Callable[[], str], redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    environ = {
        "ARKLOOP_DATABASE_URL": _emptied(new_database()),
        "ARKLOOP_REDIS_URL": redis_url,
        "ARKLOOP_JWT_SECRET": secrets.token_hex(32),
        "ARKLOOP_ENCRYPTION_KEY": secrets.token_hex(32),
        "ARKLOOP_SCRIPTED": "1",
        "ARKLOOP_SECURE_COOKIES": "0",
        "ARKLOOP_API_WORKERS": "1",
        "ARKLOOP_FILES_DIR": str(tmp_path / "files"),
        **PACE,
    }
    fleet = Fleet(environ, tmp_path)
    yield fleet
    fleet.close()


def _emptied(url: str) -> str:
    """Return the URL of the database, without the tables of this release."""
    engine = create_engine(url)
    with engine.begin() as sql:
        sql.execute(text("DROP SCHEMA public CASCADE"))
        sql.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


def test_nobody_notices_an_upgrade_nor_the_way_back(fleet: Fleet, tmp_path: Path) -> None:
    """While processes of the last release are replaced by this one's, and those by the last's
    again, every create succeeds, and each stream has each number and each word once.
    """
    last = releases.unpack(BEFORE, tmp_path / "last")
    release, _ = read_procfile(last / "Procfile")
    assert release is not None
    fleet.run(last, release)
    fleet.run(
        last,
        "python -m arkloop.cli users create --org acme --create --role owner --login alice"
        f" --email alice@example.com --password '{PASSWORD}'",
    )
    pair = fleet.start(last)
    login = {"login": "alice", "password": PASSWORD}
    token = client(pair.url).post("/v1/auth/login", json=login).json()["access_token"]
    load = Load(fleet.rotation, token)
    clients = threading.Thread(target=load.run)
    clients.start()
    try:
        time.sleep(SECONDS)
        for source in (ROOT, last):
            fleet.run(source, release)  # a newer schema stays
            following = fleet.start(source)
            time.sleep(SECONDS)
            fleet.stop(pair)
            pair = following
            time.sleep(SECONDS)
    finally:
        load.stop()
        clients.join()

    print(load.figures())
    assert [] == load.problems
    assert len(load.created) > 2 * SECONDS * RUNS_PER_SECOND
    assert load.resumed, "no run was interrupted by a deploy"
