"""The log of the commands that execute tools and agents of others."""

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
