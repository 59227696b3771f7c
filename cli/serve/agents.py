"""`arkloop agents serve`: a worker that executes runs of an agent in the customer's network."""

import re

import click

from arkloop.cli.client.server_address import find_server
from arkloop.cli.serve import modules, serving
from arkloop.cli.serve.agent_worker import AgentWorker
from arkloop.shared.agents.agent_call import AgentFunction
from arkloop.shared.plugins import problem_of

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


@click.group()
def agents() -> None:
    """Execute runs of an agent in a worker of your own."""


def _function_of(target: str) -> tuple[str, AgentFunction]:
    """Import the function of `MODULE:FUNCTION`; returns its name, too."""
    module, _, name = target.rpartition(":")
    if not module:
        raise click.ClickException(f"{target!r} is not MODULE:FUNCTION.")
    function: AgentFunction | None = getattr(modules.imported(module), name, None)
    if function is None:
        raise click.ClickException(f"{module} has no function {name!r}.")
    if (problem := problem_of("agents", function)) is not None:
        raise click.ClickException(f"{target}: {name!r} {problem}.")
    return name, function


@agents.command()
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--agent", help="Name of the agent in personas; by default that of the function.")
@serving.options("runs")
def serve(function: str, agent: str | None, concurrency: int, grace_seconds: float) -> None:
    """Execute runs with a FUNCTION of a Python module or file, sync or async.

    Uses ARKLOOP_URL and ARKLOOP_API_KEY; a key with the single scope `agents.work` is enough. Only
    outbound connections are made. SIGTERM and Ctrl-C end the worker: it fetches no more runs, and
    those in progress end, or go to another worker at their next checkpoint. A second one ends it
    at once.

    Exit status: 0 stopped, 1 the function cannot be used, the key was refused, or an unexpected
    error.
    """
    serving.log_to_stderr()
    name, called = _function_of(function)
    if not _NAME.fullmatch(agent or name):
        raise click.ClickException(f"The name of an agent must match {_NAME.pattern}.")
    worker = AgentWorker(
        *(find_server(), agent or name, called),
        concurrency=concurrency,
        grace_seconds=grace_seconds,
    )
    serving.serve(worker, f"Worker {worker.id} polls for runs of the agent {agent or name}")
