"""`arkloop agents serve`: a worker that executes runs of an agent in the customer's network."""

import logging
import re
import signal
import sys
from types import FrameType

import click

from arkloop.cli.client.server_address import find_server
from arkloop.cli.serve import modules
from arkloop.cli.serve.agent_worker import AgentFunction, AgentWorker

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


@click.group()
def agents() -> None:
    """Execute runs of an agent in a worker of your own."""


def _function_of(target: str) -> tuple[str, AgentFunction]:
    """Import the function of `MODULE:FUNCTION`; returns its name, too."""
    module, _, name = target.rpartition(":")
    if not module:
        raise click.ClickException(f"{target!r} is not MODULE:FUNCTION.")
    function = getattr(modules.imported(module), name, None)
    if not callable(function):
        raise click.ClickException(f"{module} has no function {name!r}.")
    return name, function


@agents.command()
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--agent", help="Name of the agent in personas; by default that of the function.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Runs executed at the same time.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3_600),
    default=30,
    show_default=True,
    help="Seconds for which runs may go on after SIGTERM.",
)
def serve(function: str, agent: str | None, concurrency: int, grace: float) -> None:
    """Execute runs with a FUNCTION of a Python module or file, sync or async.

    Uses ARKLOOP_URL and ARKLOOP_API_KEY; a key with the single scope `agents.work` is enough. Only
    outbound connections are made. SIGTERM and Ctrl-C end the worker: it fetches no more runs, and
    those in progress end, or go to another worker at their next checkpoint. A second one ends it
    at once.

    Exit status: 0 stopped, 1 the key was refused.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("httpx2", "httpcore2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    name, called = _function_of(function)
    if not _NAME.fullmatch(agent or name):
        raise click.ClickException(f"The name of an agent must match {_NAME.pattern}.")
    worker = AgentWorker(
        find_server(), agent or name, called, concurrency=concurrency, grace_seconds=grace
    )

    def stop(number: int, _frame: FrameType | None) -> None:
        worker.stop()
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    click.echo(f"Worker {worker.id} executes runs of the agent {agent or name}", err=True)
    worker.run()
    if worker.failure is not None:
        raise worker.failure
    sys.exit(0)
