"""Keep processes alive on this machine, as a production supervisor would.

One thread and one `poll`: the kernel ties children to the thread that started them, and a
supervisor that waits for nothing but its children has little to get wrong.
"""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from arkloop.cli.dev import die_with_parent, process_tree
from arkloop.cli.dev.embedded_server import ServerInUse
from arkloop.cli.dev.guard import stop_signals
from arkloop.cli.dev.prefixed_output import PrefixedOutput

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30
#: Seconds after which a process is healthy: its next pause is the first one again.
HEALTHY_SECONDS = 10
_POLL_SECONDS = 0.5
_LONGEST_LINE = 64 * 1024
_REMEMBERED_LINES = 20
#: `timeout` and some terminals send the same signal twice; only a later one means "hurry".
_IMPATIENCE_SECONDS = 1


@dataclass(frozen=True, kw_only=True)
class Process:
    """A program to run and how to stop it. `argv` ties itself to the supervisor if `is_tied`."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None  # None: the supervisor's own
    cwd: Path = Path("/")
    is_tied: bool = False
    prepare: Callable[[], None] | None = None  # before each start; may raise to try again later
    stop_signal: signal.Signals = signal.SIGTERM
    stop_rank: int = 0  # all of one rank stop together, low ranks first
    stop_seconds: float = 25  # after these the whole process group is killed
    reload_signal: signal.Signals | None = None  # makes it load its code anew; None: stop and start


@dataclass(frozen=True)
class Failure:
    """The first time that a process did not start or ended, since it was last healthy.

    `reason` is its error or the first lines of its output.
    """

    at: float  # monotonic
    reason: str


@dataclass
class _Child:
    process: Process
    is_once: bool = False  # runs to its end, and never again
    running: subprocess.Popen[bytes] | None = None
    started_at: float = 0  # monotonic
    pause_seconds: float = FIRST_PAUSE_SECONDS
    restart_at: float | None = None
    reload_by: float | None = None  # monotonic: it is killed then, and started again
    partial_line: bytearray = field(default_factory=bytearray)
    first_lines: list[str] = field(default_factory=list)  # of its present life
    failure: Failure | None = None


class Supervisor:
    """Starts, restarts and stops processes; use it from the main thread only.

    SIGINT, SIGTERM and SIGHUP ask it to stop; a second one makes it stop at once.
    """

    def __init__(self, output: PrefixedOutput) -> None:
        self.output = output
        self.each_turn: Callable[[], None] = lambda: None  # called a few times a second
        self.stop_requests = 0
        self._last_stop_request = 0.0  # monotonic
        self._children: list[_Child] = []
        self._selector = selectors.PollSelector()
        self._stopping = False
        die_with_parent.adopt_orphans()
        wakeup, self._wakeup_write = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(self._wakeup_write, False)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self._selector.register(wakeup, selectors.EVENT_READ, None)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        for number in stop_signals():
            signal.signal(number, self._request_stop)
        # The parent of this process may have blocked them until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())

    def start(self, process: Process) -> None:
        """Run it from now on, and again whenever it ends."""
        self.output.name(process.name)
        child = _Child(process)
        self._children.append(child)
        self._start(child)

    def reload(self, name: str) -> None:
        """Have a process load its code anew; one that waits for its restart starts now."""
        child = next(child for child in self._children if child.process.name == name)
        child.pause_seconds = FIRST_PAUSE_SECONDS
        now = time.monotonic()
        if child.running is None:
            child.restart_at = now
            return
        number = child.process.reload_signal
        if number is None:
            number = child.process.stop_signal
            child.reload_by = now + child.process.stop_seconds
        with suppress(ProcessLookupError):
            os.kill(child.running.pid, number)

    def run_once(self, process: Process) -> int | None:
        """Run it to its end; its exit status, None if a stop was asked for first."""
        self.output.name(process.name)
        child = _Child(process, is_once=True)
        self._children.append(child)
        self._start(child)
        running = child.running
        if running is None:
            return 126
        if not self.wait(lambda: child.running is None):
            self._kill(child)
        self._children.remove(child)
        return None if self.stop_requests else running.returncode

    def wait(self, condition: Callable[[], bool], timeout_seconds: float | None = None) -> bool:
        """Supervise until the condition holds: True; False on a stop request or a time-out."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not condition():
            if self.stop_requests or (deadline is not None and time.monotonic() > deadline):
                return False
            self._turn(0.05)
        return True

    def run(self) -> None:
        """Supervise until a stop is asked for."""
        while not self.stop_requests:
            self._turn(_POLL_SECONDS)

    def pid_of(self, name: str) -> int | None:
        """Return the id of the process that runs under this name now, None if there is none."""
        for child in self._children:
            if child.process.name == name and child.running is not None:
                return child.running.pid
        return None

    def failure_of(self, name: str) -> Failure | None:
        """Return why the process of this name does not stay up; None if it has had no failure."""
        return next((c.failure for c in self._children if c.process.name == name), None)

    def stop(self, *, longest_seconds: float | None = None) -> None:
        """Stop all in the order of their ranks, and everything that they left behind.

        `longest_seconds` shortens every process' own bound.
        """
        self._stopping = True
        for child in self._children:
            child.restart_at = None
        for rank in sorted({child.process.stop_rank for child in self._children}):
            self._stop([c for c in self._children if c.process.stop_rank == rank], longest_seconds)
        process_tree.end_children()
        self.output.flush(1)

    def _stop(self, children: list[_Child], longest_seconds: float | None) -> None:
        now = time.monotonic()
        patience = max(1, self.stop_requests)
        deadlines = []
        for child in children:
            if child.running is None:
                continue
            seconds = child.process.stop_seconds
            if longest_seconds is not None:
                seconds = min(seconds, longest_seconds)
            deadlines.append((child, now + seconds))
            with suppress(ProcessLookupError):
                os.kill(child.running.pid, child.process.stop_signal)
        while any(child.running for child, _ in deadlines):
            self._turn(0.05)
            for child, deadline in deadlines:
                if child.running is None:
                    continue
                if time.monotonic() > deadline or self.stop_requests > patience:
                    self.output.plain(f"{child.process.name} does not stop: killing it")
                    self._kill(child)

    def _request_stop(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last_stop_request > _IMPATIENCE_SECONDS:
            self.stop_requests += 1
        self._last_stop_request = now

    def _start(self, child: _Child) -> None:
        process = child.process
        child.restart_at = None
        child.started_at = time.monotonic()
        child.first_lines = []
        argv = process.argv if process.is_tied else die_with_parent.dying_with_parent(process.argv)
        try:
            if process.prepare is not None:
                process.prepare()
            child.running = subprocess.Popen(
                argv,
                env=process.env,
                cwd=process.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except Exception as error:
            self.output.line(process.name, f"cannot start: {error}")
            # A server that still uses the data folder will end: waiting helps.
            reason = None if isinstance(error, ServerInUse) else str(error)
            self._plan_restart(child, "did not start", reason)
            return
        assert child.running.stdout is not None
        os.set_blocking(child.running.stdout.fileno(), False)
        self._selector.register(child.running.stdout, selectors.EVENT_READ, child)

    def _turn(self, timeout_seconds: float) -> None:
        """Wait for something to happen, and deal with all of it."""
        due = [c.restart_at for c in self._children if c.restart_at is not None]
        if due:
            timeout_seconds = max(0, min(timeout_seconds, min(due) - time.monotonic()))
        for key, _events in self._selector.select(timeout_seconds):
            if key.data is None:
                with suppress(BlockingIOError):
                    os.read(key.fd, 4096)
            else:
                self._read(key.data)
        self.output.flush()
        self._reap()
        if not self._stopping:
            self.each_turn()
        now = time.monotonic()
        for child in self._children:
            if child.restart_at is not None and child.restart_at <= now:
                self._start(child)
            if child.running and child.reload_by is not None and child.reload_by <= now:
                with suppress(ProcessLookupError):
                    os.killpg(child.running.pid, signal.SIGKILL)

    def _read(self, child: _Child) -> bool:
        """Pass on what the child has written; False when there is no more for now."""
        assert child.running is not None and child.running.stdout is not None
        try:
            data = os.read(child.running.stdout.fileno(), 65536)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(child.running.stdout)
            child.running.stdout.close()
            return False
        child.partial_line += data
        *lines, rest = child.partial_line.split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines.append(rest)
            rest = bytearray()
        for line in lines:
            self._pass_on(child, line)
        child.partial_line = rest
        return True

    def _pass_on(self, child: _Child, line: bytes | bytearray) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        self.output.line(child.process.name, text)
        if len(child.first_lines) < _REMEMBERED_LINES:
            child.first_lines.append(text)

    def _reap(self) -> None:
        while (pid := process_tree.next_ended_child()) is not None:
            child = next((c for c in self._children if c.running and c.running.pid == pid), None)
            if child is None:
                process_tree.forget(pid)
                continue
            how = self._bury(child)
            if not self._stopping:
                # A worker of a killed gunicorn still holds the port, a backend its memory.
                pids = {child.running.pid for child in self._children if child.running}
                process_tree.end_children(spare=pids)
                self._plan_restart(child, how, "\n".join([how, *child.first_lines]))

    def _bury(self, child: _Child) -> str:
        """Kill the rest of its group while its pid is still its own, let it go; how it ended."""
        running = child.running
        assert running is not None and running.stdout is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(running.pid, signal.SIGKILL)
        while not running.stdout.closed and self._read(child):
            pass
        if not running.stdout.closed:
            self._selector.unregister(running.stdout)
            running.stdout.close()
        if child.partial_line:
            self._pass_on(child, child.partial_line)
            child.partial_line = bytearray()
        status = running.wait()
        child.running = None
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def _plan_restart(self, child: _Child, how: str, reason: str | None) -> None:
        """Plan a restart; `how` the process ended, and `reason` is its failure unless None."""
        if child.is_once:
            return
        now = time.monotonic()
        if child.reload_by is not None:
            child.reload_by, child.restart_at = None, now
            return
        if now - child.started_at > HEALTHY_SECONDS:
            child.pause_seconds = FIRST_PAUSE_SECONDS
            child.failure = None
        if child.failure is None and reason is not None:
            child.failure = Failure(now, reason)
        pause = child.pause_seconds
        child.restart_at = now + pause
        child.pause_seconds = min(pause * 2, LONGEST_PAUSE_SECONDS)
        self.output.plain(f"{child.process.name} {how}; restarting in {pause:g} s")

    def _kill(self, child: _Child) -> None:
        assert child.running is not None
        with suppress(ProcessLookupError):
            os.killpg(child.running.pid, signal.SIGKILL)
        self._bury(child)
