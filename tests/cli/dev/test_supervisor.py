"""The supervisor and its guard, over small processes; each test starts a supervisor of its own.

It runs as a child: it adopts orphans and takes over signals, which a test runner must not.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import is_alive

pytestmark = pytest.mark.processes

SUPERVISOR = """
import json, os, signal, sys
from arkloop.cli.dev.guard import guarded
from arkloop.cli.dev.prefixed_output import PrefixedOutput
from arkloop.cli.dev.supervisor import Process, Supervisor

def supervise():
    supervisor = Supervisor(PrefixedOutput())
    for name, code, settings in json.loads(sys.argv[1]):
        supervisor.start(Process(name=name, argv=[sys.executable, "-uc", code], **settings))
    supervisor.run()
    supervisor.stop()
    supervisor.output.plain("all stopped")
    return 0

sys.exit(guarded(supervise))
"""

IDLE = "import time; print('up'); time.sleep(1000)"
#: A child in a session of its own, out of reach of signals to its parent's group.
WITH_A_DETACHED_CHILD = """
import subprocess, sys, time
child = [sys.executable, "-c", "import time; time.sleep(1000)"]
print("up", subprocess.Popen(child, start_new_session=True).pid)
time.sleep(1000)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up")
time.sleep(1000)
"""
LAST_WORDS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("bye")))
print("up")
time.sleep(1000)
"""


@dataclass
class Supervised:
    """A running supervisor, its guard, and what they have written."""

    guard: subprocess.Popen[bytes]
    log: Path
    tree: set[psutil.Process]

    @property
    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def remember(self) -> None:
        """Remember all processes below the guard and itself, now and at earlier calls."""
        guard = psutil.Process(self.guard.pid)
        self.tree |= {guard, *guard.children(recursive=True)}

    def has(self, *texts: str) -> Callable[[], bool]:
        return lambda: all(any(text in line for line in self.lines) for text in texts)

    def nothing_is_left(self) -> bool:
        return not any(map(is_alive, self.tree))


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


Supervise = Callable[..., Supervised]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Start a supervisor with (name, Python code, settings) processes, up when all said so."""
    started: list[Supervised] = []

    def start(*processes: tuple[str, str, dict[str, Any]]) -> Supervised:
        log = tmp_path / "output"
        argv = [sys.executable, "-c", SUPERVISOR, json.dumps(processes)]
        with log.open("wb") as output:
            guard = subprocess.Popen(argv, stdout=output, stderr=output)
        supervised = Supervised(guard, log, set())
        started.append(supervised)
        eventually(supervised.has(*(f"{name} " for name, _code, _settings in processes)))
        supervised.remember()
        return supervised

    yield start
    for supervised in started:
        supervised.guard.kill()
        supervised.guard.wait()
        eventually(supervised.nothing_is_left)


def test_a_stop_signal_ends_everything_with_status_0(supervise: Supervise) -> None:
    """A stop signal ends also what a process started in a session of its own, with status 0."""
    supervised = supervise(("web", WITH_A_DETACHED_CHILD, {}), ("worker", IDLE, {}))
    eventually(supervised.has("web    | up", "worker | up"))
    supervised.remember()

    supervised.guard.send_signal(signal.SIGINT)

    assert 0 == supervised.guard.wait(60)
    assert supervised.nothing_is_left()
    assert "all stopped" == supervised.lines[-1]


@pytest.mark.parametrize("victim", ["guard", "supervisor"])
def test_a_kill_leaves_nothing(supervise: Supervise, victim: str) -> None:
    """Whichever of the two processes is killed, the other one ends the rest."""
    supervised = supervise(("web", WITH_A_DETACHED_CHILD, {}), ("worker", IDLE, {}))
    eventually(supervised.has("web    | up", "worker | up"))
    supervised.remember()
    guard = psutil.Process(supervised.guard.pid)

    (guard if victim == "guard" else guard.children()[0]).kill()

    eventually(supervised.nothing_is_left)
    assert 0 != supervised.guard.wait(60)


def test_the_application_stops_before_its_servers(supervise: Supervise) -> None:
    """A worker gives back its runs, which takes a database."""
    supervised = supervise(
        ("postgres", LAST_WORDS, {"stop_rank": 1}), ("worker", LAST_WORDS, {"stop_rank": 0})
    )
    eventually(supervised.has("postgres | up", "worker   | up"))

    supervised.guard.terminate()

    assert 0 == supervised.guard.wait(60)
    assert ["worker   | bye", "postgres | bye"] == [x for x in supervised.lines if "bye" in x]


def test_a_process_that_does_not_stop_is_killed(supervise: Supervise) -> None:
    """Stopping is bounded, and says what it did."""
    supervised = supervise(("worker", STUBBORN, {"stop_seconds": 0.3}))
    eventually(supervised.has("worker | up"))

    supervised.guard.terminate()

    assert 0 == supervised.guard.wait(60)
    assert supervised.has("worker does not stop: killing it")()
    assert supervised.nothing_is_left()


def test_a_dead_process_is_started_again_with_a_growing_pause(supervise: Supervise) -> None:
    """Its status and each pause are printed, and the others are left alone."""
    supervised = supervise(("web", "raise SystemExit(3)", {}), ("worker", IDLE, {}))

    eventually(
        supervised.has(
            "web ended with status 3; restarting in 0.5 s",
            "web ended with status 3; restarting in 1 s",
        )
    )

    assert 1 == sum("worker | up" in line for line in supervised.lines)


def test_what_a_killed_process_leaves_behind_is_gone_before_its_successor(
    supervise: Supervise,
) -> None:
    """A child of the killed one would still hold its port."""
    supervised = supervise(("web", WITH_A_DETACHED_CHILD, {}))
    eventually(supervised.has("web | up"))
    pid = int(supervised.lines[0].split()[-1])
    child = psutil.Process(pid)
    parent = child.parent()
    assert parent is not None

    parent.kill()
    eventually(supervised.has("web was ended by SIGKILL"))

    eventually(lambda: 2 == sum("web | up" in line for line in supervised.lines))
    assert not child.is_running()


def test_output_without_a_last_newline_is_shown(supervise: Supervise) -> None:
    """The last words of a crash are the ones that matter."""
    supervised = supervise(("web", "import sys; sys.exit(sys.stdout.write('cut off') and 1)", {}))

    eventually(supervised.has("web | cut off"))


def test_an_unread_output_does_not_hold_up_a_stop() -> None:
    """A pipe that nobody reads fills; the supervisor does not wait."""
    flood = "while True: print('x' * 1000)"
    argv = [sys.executable, "-c", SUPERVISOR, json.dumps([("web", flood, {})])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, bufsize=0) as guard:
        assert guard.stdout is not None
        guard.stdout.read(1)
        tree = [psutil.Process(guard.pid), *psutil.Process(guard.pid).children(recursive=True)]
        busy = tree[-1]
        eventually(lambda: busy.cpu_times().user > 0.2)

        os.kill(guard.pid, signal.SIGTERM)

        assert 0 == guard.wait(60)
    assert not any(process.is_running() for process in tree)
