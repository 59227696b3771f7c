"""The options, signals and logs of `arkloop tools serve` and `arkloop agents serve`."""

import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, Protocol, TypeVar

import click

from arkloop.shared.log_writer import LogWriter

log = logging.getLogger(__name__)

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
        worker.stop()
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    click.echo(announcement, err=True)
    worker.run()
    if worker.failure is not None:
        raise worker.failure
    sys.exit(0)


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
