"""The options, signals and logs of `arkloop tools serve` and `arkloop agents serve`."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn, Protocol, TypeVar

import click

from arkloop.shared.log_writer import LogWriter

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: How long Python may take to end: it waits for the threads of executors without a limit.
EXIT_SECONDS = 2.0

Command = TypeVar("Command", bound=Callable[..., Any])


class Worker(Protocol):
    """A worker that runs until it is stopped; `failure` is why it could not go on."""

    failure: click.ClickException | None

    def run(self) -> None: ...

    def stop(self) -> None: ...


def options(work: str) -> Callable[[Command], Command]:
    """Add the options of every worker; `work` is the plural of what it fetches."""

    def add(command: Command) -> Command:
        with_grace = click.option(
            "--grace",
            "grace_seconds",
            type=click.FloatRange(0, 3_600),
            default=30,
            show_default=True,
            help=f"Seconds for which {work} may go on after SIGTERM.",
        )
        with_concurrency = click.option(
            "--concurrency",
            type=click.IntRange(1, 256),
            default=8,
            show_default=True,
            help=f"{work.capitalize()} executed at the same time.",
        )
        return with_concurrency(with_grace(command))

    return add


def log_to_stderr() -> None:
    """Log what the worker and the code that it executes have to say, one line each."""
    handler = LogWriter()
    # The log has what was done before a native library crashed, which would end a thread, too.
    handler.writes_directly = True
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[handler],
    )
    for noisy in ("httpx2", "httpcore2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def serve(worker: Worker, announcement: str) -> NoReturn:
    """Run the worker until a signal stops it; a second signal ends the process at once.

    Raises:
        click.ClickException: the service has refused the worker, or it has failed.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        for one in _STOP_SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        worker.stop()

    for number in _STOP_SIGNALS:
        signal.signal(number, stop)
    _end_forks(stop)
    click.echo(announcement, err=True)
    worker.run()
    status = 0 if worker.failure is None else worker.failure.exit_code
    with suppress(RuntimeError):  # no thread is left for it
        threading.Thread(target=_end_late, args=[status], name="exit", daemon=True).start()
    with suppress(OSError, ValueError):  # code that it has executed may have closed it
        sys.stdout.flush()
    if worker.failure is not None:
        raise worker.failure
    sys.exit(0)


def _end_late(status: int) -> None:
    """End the process if Python does not, such as during a call of `asyncio.to_thread`.

    Exit handlers run after the threads of executors: behind a blocked one they do not run.
    """
    time.sleep(EXIT_SECONDS)
    try:
        log.warning("threads or exit handlers did not end within %g s", EXIT_SECONDS)
        if (processes := sys.modules.get("multiprocessing")) is not None:
            for child in processes.active_children():  # nobody else would end them
                child.terminate()
    finally:
        os._exit(status)


def _end_forks(stop: Callable[[int, FrameType | None], None]) -> None:
    """Let SIGTERM end processes that tools and agents fork: `stop` is for the worker alone.

    `multiprocessing` ends processes by SIGTERM, and waits for them without a limit.
    """
    thread = threading.local()

    def block() -> None:
        # A signal that comes before the child has its handlers waits for them.
        thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, thread.mask)

    def reset() -> None:
        # A process that the worker has forked may have handlers of its own, for its own children.
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is stop:
            # A terminal sends it to all processes, and calls in progress are waited for.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def stop_on_error(worker: Worker, task: Callable[[], object]) -> None:
    """Execute what a thread of the worker does; an error that it does not expect stops the worker.

    Without this thread the process would look alive and do nothing.
    """
    try:
        task()
    except Exception as error:
        log.exception("the worker stops: an unexpected error")
        worker.failure = click.ClickException(
            f"The worker stopped: unexpected {type(error).__name__}; its log has more."
        )
        worker.stop()
