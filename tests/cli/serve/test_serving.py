"""The log and the signals of the commands that execute tools and agents of others."""

import os
import signal
import subprocess
import sys

import pytest

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
