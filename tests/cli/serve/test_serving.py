"""The log and the signals of the commands that execute tools and agents of others."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.serve.polled_runs import RUN, RUN_ID
from tests.cli.serve.scripted_service import scripted_service
from tests.cli.serve.test_tool_worker import CALL
from tests.waiting import eventually
from tests.web_server import INHERITED

pytestmark = pytest.mark.processes

#: A crash in C code that has not released the GIL, while other threads compute.
CRASH = """
import ctypes, logging, resource, sys, threading
from arkloop.cli.serve import serving
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
serving.log_to_stderr()
abort = ctypes.PyDLL(None).abort

def compute():
    while True:
        sum(range(1_000))

for _ in range(4):
    threading.Thread(target=compute, daemon=True).start()
sys.setswitchinterval(0.01)
for number in range(20):
    logging.info("converting document %d", number)
abort()
"""


def test_the_line_before_a_crash_of_native_code_is_written() -> None:
    """A library that a tool uses ends the process without a word."""
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True)

    assert done.returncode < 0
    assert 20 == done.stderr.count("converting document")


#: A worker whose code forks processes and ends them, before it is stopped by SIGTERM itself.
FORKS = """
import multiprocessing, os, signal, threading, time
from arkloop.cli.serve import serving

forking = multiprocessing.get_context("fork")

class Worker:
    failure = None
    stopping = threading.Event()

    def run(self):
        threading.Thread(target=self.work, daemon=True).start()
        while not self.stopping.wait(0.1):
            pass

    def stop(self):
        self.stopping.set()

    def work(self):
        process = forking.Process(target=time.sleep, args=(120,))
        process.start()
        time.sleep(0.5)
        process.terminate()
        process.join(10)
        print("terminated", process.exitcode, flush=True)
        for _ in range(60):
            with forking.Pool(2) as pool:
                pool.map(abs, [-1, -2])
        print("60 pools", flush=True)
        process = forking.Process(target=self.handle)
        process.start()
        process.join(60)
        print("handled", process.exitcode, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    def handle(self):
        # A process with a handler of its own, which it passes on.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        process = forking.Process(target=time.sleep, args=(120,))
        process.start()
        time.sleep(0.5)
        process.terminate()
        process.join(60)
        os._exit(process.exitcode)

serving.serve(Worker(), "It works.")
"""


def test_a_process_that_a_tool_forks_ends_as_in_any_program() -> None:
    """The worker's handler of SIGTERM is not its own: `multiprocessing` ends processes by that."""
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as worker:
        try:
            output, _ = worker.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            raise

    lines = ["terminated -15", "60 pools", "handled 7"]
    assert (0, lines) == (worker.returncode, output.splitlines())


#: A tool and agents that call a library which blocks, in a thread or process of its own.
NAPS = """
import asyncio, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from arkloop.agents import AgentRun
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool

def nap():
    print("naps")
    Path("began").touch()
    time.sleep(100)

@tool(idempotent=True)
async def work(context: ToolContext) -> str:
    "Execute the call."
    await asyncio.to_thread(nap)
    return "done"

async def agent(run: AgentRun) -> str:
    await asyncio.to_thread(nap)
    return "done"

def compute():
    Path("began").touch()
    time.sleep(100)

async def computing(run: AgentRun) -> str:
    print("naps")
    with ProcessPoolExecutor(1) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, compute)
    return "done"
"""


@pytest.mark.parametrize(
    "command",
    [
        ("tools", "serve", "naps", "--pool", "mine"),
        ("agents", "serve", "naps:agent"),
        ("agents", "serve", "naps:computing"),
    ],
)
def test_a_call_of_a_tool_or_agent_does_not_outlast_its_worker(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Python waits for the threads and processes of executors; what was printed is not lost."""
    (tmp_path / "naps.py").write_text(NAPS)
    work = [({**CALL, "fence": 1}, {**RUN, "fence": 1})]

    def respond(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if verb != "poll":
            held = [{"run_id": RUN_ID, "is_held": True, "cancel_requested": False}]
            written = {"status": "queued", "cancel_requested": False, "next_seq": 9}
            return 200, {"ok": True, "cancelled": [], "lost": [], "runs": held, **written}
        found = [work.pop()] if work else []
        time.sleep(0 if found else 0.2)
        calls, runs = [call for call, _ in found], [run for _, run in found]
        polled = {"tools_hash": "0" * 64, "cancelled": [], "calls": calls}
        return 200, {**polled, "lease_seconds": 15.0, "runs": runs}

    with scripted_service(respond) as address:
        environ = {**INHERITED, "ARKLOOP_URL": address.url, "ARKLOOP_API_KEY": address.key}
        with subprocess.Popen(
            [sys.executable, "-m", "arkloop.cli", *command, "--grace", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environ,
            process_group=0,
        ) as worker:
            try:
                eventually(lambda: (tmp_path / "began").exists())
                worker.send_signal(signal.SIGTERM)
                output, logged = worker.communicate(timeout=40)  # until its processes end, too
            finally:
                with suppress(ProcessLookupError):  # all have ended
                    os.killpg(worker.pid, signal.SIGKILL)

    assert b"WARNING threads or exit handlers did not end within 2 s" in logged
    assert (0, b"naps\n") == (worker.returncode, output)


#: A worker whose main thread holds the lock of the event for which it waits when SIGTERM comes.
INTERRUPTED = """
import signal, sys
from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve import serving
from arkloop.cli.serve.agent_worker import AgentWorker
from arkloop.cli.serve.tool_worker import ToolWorker

address = ServerAddress("http://127.0.0.1:9", "key")
worker = {
    "tools": lambda: ToolWorker(
        address, "mine", {}, concurrency=1, lease_seconds=15, grace_seconds=1
    ),
    "agents": lambda: AgentWorker(address, "mine", print, concurrency=1, grace_seconds=1),
}[sys.argv[1]]()
run = worker.run

def interrupted():
    with worker._stopping._cond:
        signal.raise_signal(signal.SIGTERM)
    run()

worker.run = interrupted
serving.serve(worker, "It works.")
"""


@pytest.mark.parametrize("kind", ["tools", "agents"])
def test_a_signal_stops_a_worker_whenever_it_comes(kind: str) -> None:
    """The handler interrupts the main thread, which may hold a lock just then."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, kind], timeout=30)

    assert 0 == done.returncode
