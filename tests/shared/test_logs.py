"""Logs: one JSON object a line, whatever happens in a process."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

_PROGRAM = """
from gevent import monkey
monkey.patch_all()
import threading, gevent
from arkloop.shared import logs
logs.configure()

def fail(error):
    raise error

threading.Thread(target=fail, args=(ValueError("in a thread"),)).start()
for error in (ValueError("in a greenlet"), ConnectionResetError(104, "reset")):
    gevent.spawn(fail, error)
gevent.sleep(0.05)
"""

_CALLER = """
from gevent import monkey
monkey.patch_all()
from arkloop.shared import logs
from arkloop.shared.native_threads import NativeThreads
logs.configure()
try:
    NativeThreads(1).call(open, "/nowhere/missing.part")
except FileNotFoundError as error:
    print(error.strerror)
"""


def test_what_ends_a_greenlet_is_one_line_of_json() -> None:
    """A client that resets its stream is no error, and leaves no traceback."""
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    found = {line["message"]: (line["level"], line.get("exc_info", "")) for line in lines}
    assert 3 == len(lines) == len(found)
    assert ("INFO", "") == found["connection lost: ConnectionResetError"]
    level, traceback = found["greenlet failed"]
    assert "ERROR" == level and traceback.endswith("ValueError: in a greenlet")
    assert any(message.endswith("failed") and "thread" in message for message in found)


def test_an_error_in_a_native_thread_is_its_callers() -> None:
    """An error that the caller handles is not reported a second time, as one of a greenlet."""
    ended = subprocess.run(
        [sys.executable, "-c", _CALLER], capture_output=True, text=True, check=True
    )
    assert ("No such file or directory\n", "") == (ended.stdout, ended.stderr)
