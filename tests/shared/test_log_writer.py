"""Log lines that a thread writes: no process waits for their reader, and none is lost without one.

`BURST` and `END` are programs under gevent; a greenlet of theirs would be stopped by a wait.
"""

import _thread
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkloop.shared import log_writer
from tests.waiting import eventually

pytestmark = pytest.mark.processes

_START = """
from gevent import monkey
monkey.patch_all()
import logging, os, signal, sys
from arkloop.shared import logs
logs.configure()
log = logging.getLogger("test")
"""
BURST = f"""{_START}
for number in range(int(sys.argv[1])):
    log.info("line %d", number)
print("still here", flush=True)
sys.stdin.readline()
log.info("after")
"""
END = f"""{_START}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
for number in range(100):
    log.info("line %d", number)
log.error("the last line")
if sys.argv[1] == "signal":
    os.kill(os.getpid(), signal.SIGTERM)
elif sys.argv[1] == "exec":
    logs.handler().flush()
    os.execv("/bin/true", ["true"])
elif sys.argv[1] == "error":
    sys.stderr.write("it cannot start\\n")
    sys.exit(1)
"""
FORK = f"""{_START}
for number in range(500):
    log.info("line %d", number)
fork = monkey.get_original("os", "fork")
if fork() == 0:
    log.info("child")
    sys.exit(0)
os.wait()
"""
_NATIVE = """
import logging, multiprocessing, os, sys
from arkloop.shared.log_writer import LogWriter
logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogWriter()])
"""
#: With the standard library's `fork` and `waitpid`: gevent's loses the end of a child now and then.
_GREEN = f"{_START}import multiprocessing".replace(
    "patch_all()", "patch_all(os=False, signal=False)"
)
CHILDREN = """
def work(number):
    logging.info("child %d", number)
    if number % 2:
        os.kill(os.getpid(), 9)

logging.info("parent")
for number in range(6):
    child = multiprocessing.get_context("fork").Process(target=work, args=(number,))
    child.start()
    child.join()
"""
CHILD_BURST = f"""
{_NATIVE}
if os.fork() == 0:
    for number in range(20_000):
        logging.info("line %d%s", number, sys.argv[1])
    print("still here", flush=True)
    sys.stdin.readline()
    logging.info("after")
    os._exit(0)
os.wait()
"""
#: Standard error is a full disk, a pipe that nobody reads, and the pipe of standard output.
FAULTS = f"""{_START}
full = os.open("/dev/full", os.O_WRONLY)
reader, writer = os.pipe()
monkey.get_original("os", "close")(reader)  # gevent's waits for its loop
for output in full, writer, 1:
    os.dup2(output, 2)
    log.info("line %d", output)
    logs.handler().flush()
"""
#: Standard error is a file, which has room for a part of a line while the disk is full.
FULL_DISK = f"""{_START}
from tests.full_disk import full_disk
logs.handler().writes_directly = sys.argv[1] == "directly"
log.info("line 0")
logs.handler().flush()
with full_disk(os.fstat(2).st_size + 50):
    for number in range(1, 500):
        log.info("line %d", number)
        logs.handler().flush()
log.info("after")
"""
#: The same, and nothing is logged once there is room.
TORN = f"""{_START}
from tests.full_disk import full_disk
log.info("line 0")
logs.handler().flush()
with full_disk(os.fstat(2).st_size + 50):
    log.info("line 1")
    logs.handler().flush()
print("room", flush=True)
sys.stdin.readline()
"""
UNBLOCKED = f"""
import os
os.set_blocking(2, False)
{BURST}"""
CLOSED = """
import logging, sys
from arkloop.shared import logs
logs.configure()
with open(sys.argv[1], "wb") as file:
    logging.error("a line")
    logs.handler().flush()
    print(file.fileno(), file.seek(0, 2))
"""
_PLENTY = 3 * log_writer.MAX_LINES
_RECORD = logging.LogRecord("test", logging.INFO, __file__, 0, "a line", (), None)
_LINE = "a line\n"
_NOTICE = "lines of the log were dropped: standard error was not read, or could not be written"


def _messages(lines: str) -> list[str]:
    return [json.loads(line)["message"] for line in lines.splitlines()]


@contextmanager
def _started(code: str, *args: str, stderr: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_reader_that_stands_still_stops_nothing() -> None:
    """What does not fit is dropped, and counted in a line once the reader reads again."""
    with _started(BURST, str(_PLENTY), stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert "still here\n" == process.stdout.readline()
        _, written = process.communicate("\n", timeout=60)

    found = _messages(written)
    lines = [one for one in found if one.startswith("line ")]
    [notice] = [one for one in found if "dropped" in one]
    assert [f"line {number}" for number in range(len(lines))] == lines
    assert log_writer.MAX_LINES <= len(lines) < _PLENTY
    # The line after the burst may be dropped as well: it is logged before all others are read.
    later = [one for one in found if one == "after"]
    dropped = _PLENTY + 1 - len(lines) - len(later)
    assert notice.startswith(f"{dropped} lines of the log were dropped")
    assert {*later, notice} == {*found} - {*lines}


def test_no_line_is_dropped_while_standard_error_is_written(tmp_path: Path) -> None:
    """A thread that logs without a pause gives the one that writes its turn."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        with _started(BURST, str(_PLENTY), stderr=output.fileno()) as process:
            process.communicate("\n", timeout=60)

    assert [*(f"line {number}" for number in range(_PLENTY)), "after"] == _messages(log.read_text())


@pytest.mark.parametrize("how", ["return", "signal", "error", "exec"])
def test_the_last_lines_of_a_process_are_written(how: str) -> None:
    """An end by a signal or by an error at the start loses none of the lines before it."""
    with _started(END, how, stderr=subprocess.PIPE) as process:
        _, written = process.communicate(timeout=60)

    lines = [line for line in written.splitlines() if line != "it cannot start"]
    expected = [*(f"line {number}" for number in range(100)), "the last line"]
    assert expected == _messages("\n".join(lines))


def test_the_end_waits_for_a_reader_for_a_limited_time() -> None:
    """A process whose last lines nobody reads ends all the same."""
    with _started(BURST, str(_PLENTY), stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        assert 0 == process.wait(60)


def test_a_forked_process_writes_its_own_lines_alone() -> None:
    """Lines that wait when a process forks are written once."""
    with _started(FORK, stderr=subprocess.PIPE) as process:
        _, written = process.communicate(timeout=60)

    assert sorted(["child", *(f"line {number}" for number in range(500))]) == sorted(
        _messages(written)
    )
    assert 0 == process.returncode


@pytest.mark.parametrize("start", [_NATIVE, _GREEN])
def test_children_of_multiprocessing_lose_no_line(start: str) -> None:
    """They end without functions at exit, or by a signal: no line waits for a thread of theirs."""
    with _started(f"{start}{CHILDREN}", stderr=subprocess.PIPE) as process:
        _, written = process.communicate(timeout=60)

    lines = re.findall(r"child \d|parent", written)
    assert [*(f"child {number}" for number in range(6)), "parent"] == sorted(lines)


@pytest.mark.parametrize("more", ["", "." * 20_000], ids=["short", "long"])
def test_a_child_waits_for_a_reader_for_a_limited_time(more: str) -> None:
    """Lines without room are dropped, and counted before the next one that has some.

    Of a long line, which may have room for a part, the rest is written before that.
    """
    with _started(CHILD_BURST, more, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "still here\n" == process.stdout.readline()
        written = os.read(process.stderr.fileno(), 1 << 20).decode()
        _, later = process.communicate("\n", timeout=60)

    *lines, notice, last = f"{written}{later}".splitlines()
    assert [f"line {number}{more}" for number in range(len(lines))] == lines
    assert [f"{20_000 - len(lines)} {_NOTICE}", "after"] == [notice, last]


def test_what_cannot_be_written_ends_nothing() -> None:
    """A full disk or a lost reader costs lines, and later ones are written, with their number."""
    with _started(FAULTS, stderr=subprocess.DEVNULL) as process:
        written, _ = process.communicate(timeout=60)

    first, *later = _messages(written)
    assert first.startswith("line ")
    assert ["line 1", f"1 {_NOTICE}"] == later


@pytest.mark.parametrize("how", ["by a thread", "directly"])
def test_lines_that_a_full_disk_has_no_room_for_are_counted(tmp_path: Path, how: str) -> None:
    """The end of a line that is written in part comes before any other: all of them are JSON."""
    log = tmp_path / "log"
    with log.open("ab") as output:
        with _started(FULL_DISK, how, stderr=output.fileno()) as process:
            process.communicate(timeout=60)

    assert 0 == process.returncode
    found = _messages(log.read_text())
    assert ["line 0", "line 1"] == found[:2]
    assert {f"498 {_NOTICE}", "after"} == {*found[2:]}
    assert 4 == len(found)


def test_a_line_ends_as_soon_as_there_is_room(tmp_path: Path) -> None:
    """The lines of other processes come behind it, also while this one logs nothing."""
    log = tmp_path / "log"
    with log.open("ab") as output, _started(TORN, stderr=output.fileno()) as process:
        assert process.stdout is not None
        assert "room\n" == process.stdout.readline()
        eventually(lambda: log.read_text().endswith("\n"))
        output.write(b'{"message": "another process"}\n')
        output.flush()

        assert ["line 0", "line 1", "another process"] == _messages(log.read_text())


def test_a_pipe_that_another_process_has_made_non_blocking_costs_no_line() -> None:
    """The thread waits until there is room."""
    with _started(UNBLOCKED, "3000", stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        _, written = process.communicate("\n", timeout=60)

    assert [*(f"line {number}" for number in range(3_000)), "after"] == _messages(written)


def test_a_thread_that_has_failed_is_replaced(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The next line starts another thread, which also reports what was dropped."""
    errors: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: errors.append(error.exc_type))

    class FailsOnce(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            if "dropped" in record.msg and not errors:
                raise MemoryError
            return super().format(record)

    writer = log_writer.LogWriter()
    writer.setFormatter(FailsOnce())
    writer._dropped = 2
    writer.handle(_RECORD)
    eventually(lambda: errors == [MemoryError])
    writer.handle(_RECORD)
    writer.flush()

    assert f"{_LINE * 2}2 {_NOTICE}\n" == capfd.readouterr().err


def test_a_line_without_a_thread_is_written_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The next line asks for a thread again."""
    asked = []

    def refuse(*_: object) -> None:
        asked.append(1)
        raise RuntimeError("can't start new thread")

    writer = log_writer.LogWriter()
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        writer.handle(_RECORD)
        writer.handle(_RECORD)
    assert _LINE * 2 == capfd.readouterr().err
    assert [1, 1] == asked

    writer.handle(_RECORD)
    writer.flush()
    assert _LINE == capfd.readouterr().err


def test_without_standard_error_no_line_is_written(tmp_path: Path) -> None:
    """The first file or socket that is opened gets its number, and no lines."""
    started = [sys.executable, "-c", CLOSED, str(tmp_path / "file")]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *started], stdout=subprocess.PIPE, text=True
    )

    assert "2 0\n" == done.stdout
