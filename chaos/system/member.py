"""Processes that the stack starts: kept alive by a thread each, hurt by their callers."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from arkloop.cli.dev.die_with_parent import dying_with_parent
from chaos.journal import Journal

RESTART_SECONDS = 0.3
#: A machine that is busy for a while starts a worker in a minute.
READY_SECONDS = 180.0
STEP_SECONDS = 0.02
KILL_SECONDS = 60.0
#: A process that the kernel keeps busy for longer is signalled all the same.
STOP_SECONDS = 5.0
#: Deaths while it is waited for that are no accident.
HOPELESS_DEATHS = 3


class NotInTime(AssertionError):
    """The end of the time in which something had to happen."""


def wait_until(check: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for `check`. Raises NotInTime: `what` did not come true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise NotInTime(f"{what}: not within {seconds:g} s")
        time.sleep(STEP_SECONDS)


class KeptProcess:
    """A process that is started, waited for and cleaned up by a thread of its own, one life at a
    time.

    The thread lives as long as the process, because the kernel counts the end of a starting thread
    as the parent's end, at which a process that is bound to it dies.
    """

    def __init__(self, role: str, journal: Journal, log: Path) -> None:
        self.role = role
        self.log = log
        self.deaths = 0  # ends that nobody asked for with `stop`
        self._journal = journal
        self._lives = 0
        self._ended_lives = 0
        self._signalled_life = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._unwanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def pid(self) -> int | None:
        """The id of the process that is alive (or frozen), None between two lives."""
        process = self._process
        return process.pid if process is not None else None

    @property
    def is_frozen(self) -> bool:
        """True if it, or a child of it, has received SIGSTOP and no SIGCONT yet."""
        pid = self.pid
        return pid is not None and any(state_of(one) == "T" for one in (pid, *children_of(pid)))

    def freeze(self) -> None:
        """Send SIGSTOP to every process of it, like a host that stands still."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT to every process of it."""
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL to every process of it, also frozen ones; returns when they are gone."""
        life = self._signal_all(signal.SIGKILL)
        if life:
            self._wait_for_end(life, KILL_SECONDS)

    def wait_gone(self, seconds: float) -> None:
        """Wait until the process that was last sent a signal has ended.

        Raises:
            NotInTime
        """
        self._wait_for_end(self._signalled_life or self._lives, seconds)

    def launch(self) -> None:
        """Start the thread; returns when the process has an id."""
        if self._thread is not None:
            # That of an ended process has yet to write so into the journal.
            self._thread.join(0 if self.pid is not None else STOP_SECONDS)
            assert not self._thread.is_alive(), "it is running"
        self._unwanted.clear()
        life = self._lives + 1
        self._thread = threading.Thread(target=self._keep, name=f"{self.role}-keeper", daemon=True)
        self._thread.start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._lives >= life, KILL_SECONDS):
                raise NotInTime(f"{self.role} could not be started")

    def end(self, how: signal.Signals, seconds: float) -> None:
        """Send a signal to the first process alone; by force after `seconds`. It stays down."""
        self._unwanted.set()
        if how != signal.SIGKILL and self.pid is not None:
            self.thaw()
            with suppress(NotInTime):
                self._wait_for_end(self._signal_first(how), seconds)
        thread = self._thread
        # More than once: another life may just be beginning.
        while thread is not None and thread.is_alive():
            self.kill()
            thread.join(STEP_SECONDS)

    # ---- what the kinds of processes say ----------------------------------------------

    def command(self, life: int) -> tuple[Sequence[str], Mapping[str, str] | None, Path]:
        """Return the command line of the nth life, its environment (None: ours), its folder."""
        raise NotImplementedError

    def restarts(self) -> bool:
        """Return whether an unrequested end is followed by another life."""
        return False

    def has_started(self, life: int, process: subprocess.Popen[bytes]) -> None:
        """Begin a life; called in the keeping thread."""

    # ---- inside -------------------------------------------------------------------------

    def _keep(self) -> None:
        while True:
            argv, environ, folder = self.command(self._lives + 1)
            with self.log.open("ab") as output:
                process = subprocess.Popen(
                    argv,
                    cwd=folder,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            with self._changed:
                self._process = process
                self._lives += 1
                self._changed.notify_all()
            self._journal.write("process", role=self.role, pid=process.pid, what="started")
            self.has_started(self._lives, process)
            # Its id stays taken until `wait`, so that the signal below cannot meet a stranger.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            _kill_group(process.pid)
            stopped = self._unwanted.is_set()
            with self._changed:
                status = process.wait()
                self._process = None
                self._ended_lives += 1
                self.deaths += not stopped
                self._changed.notify_all()
            what = "stopped" if stopped else "died"
            self._journal.write(
                "process", role=self.role, pid=process.pid, what=what, status=status
            )
            if not self.restarts() or self._unwanted.wait(RESTART_SECONDS):
                return

    def _signal_all(self, number: signal.Signals) -> int:
        """Send the signal to all; returns the life that got it, 0 if there is none."""
        with self._changed:
            process = self._process
            if process is None:
                return 0
            self._signalled_life = self._lives
            signal_tree(process.pid, number)
            return self._lives

    def _signal_first(self, number: signal.Signals) -> int:
        with self._changed:
            if self._process is None:
                return 0
            self._signalled_life = self._lives
            os.kill(self._process.pid, number)
            return self._lives

    def _wait_for_end(self, life: int, seconds: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended_lives >= life, seconds):
                raise NotInTime(f"{self.role} has not ended within {seconds:g} s")


class Member(KeptProcess):
    """A web or worker process by its line of the Procfile; started again whenever it dies.

    With a `fault_point` its first life is armed, and no other.
    """

    def __init__(
        self,
        role: str,
        line: str,
        environ: Mapping[str, str],
        source: Path,
        journal: Journal,
        log: Path,
        *,
        fault_point: str | None = None,
        url: str | None = None,
        is_ready: Callable[["Member"], bool],
    ) -> None:
        super().__init__(role, journal, log)
        self.url = url
        self.fault_point = fault_point
        self._line = line
        self._environ = dict(environ)
        self._source = source
        self._is_ready = is_ready
        if fault_point is not None:
            self._signalled_life = 1

    def start(self) -> None:
        """Start once more, after `stop`."""
        self.launch()

    def terminate(self) -> None:
        """Send SIGTERM, as a deploy does, without waiting; another life follows."""
        self._signal_first(signal.SIGTERM)

    def kill_child(self) -> None:
        """Send SIGKILL to gunicorn's worker process alone; its master starts another."""
        pid = self.pid
        for child in children_of(pid) if pid is not None else ():
            _send(child, signal.SIGKILL)

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 30) -> None:
        """End it; it stays down until `start`."""
        self.end(how, seconds)

    @property
    def is_ready(self) -> bool:
        """A web process answers, a worker has registered itself."""
        return self.pid is not None and self._is_ready(self)

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it is ready. Raises NotInTime, with the end of its log; at once if it dies
        repeatedly.
        """
        hopeless = self.deaths + HOPELESS_DEATHS

        def ready_or_hopeless() -> bool:
            return self.is_ready or self.deaths >= hopeless

        try:
            wait_until(ready_or_hopeless, seconds, f"{self.role} is ready")
            if self.deaths >= hopeless:
                raise NotInTime(f"{self.role} dies again and again")
        except NotInTime as error:
            raise NotInTime(f"{error}\n{self.log.read_text(errors='replace')[-3000:]}") from None

    def restarts(self) -> bool:
        return True

    def command(self, life: int) -> tuple[Sequence[str], Mapping[str, str] | None, Path]:
        environ = dict(self._environ)
        if self.fault_point is not None and life == 1:
            environ["ARKLOOP_FAULT_POINT"] = self.fault_point
        return dying_with_parent(["/bin/sh", "-c", self._line]), environ, self._source

    def has_started(self, life: int, process: subprocess.Popen[bytes]) -> None:
        if self.fault_point is not None and life == 1:
            watch = threading.Thread(target=self._watch_armed, args=(process.pid,), daemon=True)
            watch.start()

    def _watch_armed(self, first: int) -> None:
        """Write the fault down when it comes; a web process whose child it hits ends as a whole.

        Gunicorn's master would start another child with the same environment, armed again.
        """
        target = first
        while self.role == "web" and target == first and self.pid == first:
            target = next(iter(children_of(first)), first)
            time.sleep(STEP_SECONDS)
        while (state := state_of(target)) not in ("T", "Z", None) and self.pid == first:
            time.sleep(STEP_SECONDS)
        if self._unwanted.is_set():
            return
        how = "STOP" if state == "T" else "KILL"
        with self._journal.fault("fault_point", point=self.fault_point, how=how, pid=target):
            while state_of(target) == "T" and not self._unwanted.is_set():
                time.sleep(STEP_SECONDS)
            if self.role == "web" and self.pid == first and state_of(target) in ("Z", None):
                self.kill()
            while not self._unwanted.is_set() and not self.is_ready:
                time.sleep(STEP_SECONDS)


def state_of(pid: int) -> str | None:
    """Return the kernel's letter: T stopped, Z ended; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return chr(stat.rpartition(b")")[2].split()[0][0])


def children_of(pid: int) -> list[int]:
    """Return the direct children, without the ended ones."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return [child for child in found if state_of(child) != "Z"]


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Send a signal to one of our processes and all below it, so that none sees the others go."""
    if number == signal.SIGCONT:
        for one in reversed(_tree(pid)):
            _send(one, number)
        return
    # A stopped process starts no child: after this the list is complete.
    seen: set[int] = set()
    while new := [one for one in _tree(pid) if one not in seen]:
        for one in new:
            _send(one, signal.SIGSTOP)
        # On a busy machine a process takes notice of a signal only when its turn comes.
        with suppress(NotInTime):
            wait_until(partial(_all_stand_still, new), STOP_SECONDS, "stopped")
        seen.update(new)
    if number != signal.SIGSTOP:
        for one in seen:
            _send(one, number)


def _all_stand_still(pids: Iterable[int]) -> bool:
    return all(state_of(pid) in ("T", "Z", None) for pid in pids)


def _tree(pid: int) -> list[int]:
    return [pid, *_below(children_of(pid))]


def _below(pids: Iterable[int]) -> list[int]:
    return [one for pid in pids for one in _tree(pid)]


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill_group(pid: int) -> None:
    # A zombie alone in its group counts: no error then.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
