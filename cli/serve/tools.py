"""`arkloop tools`: HTTP tools of the org, and a worker that executes Python tools."""

import re

import click

from arkloop.cli.client.resources import Resource
from arkloop.cli.client.server_address import find_server
from arkloop.cli.serve import serving, tool_module
from arkloop.cli.serve.tool_worker import ToolWorker

_POOL = re.compile("[a-z0-9_-]{1,32}")


@click.group()
def tools() -> None:
    """Set up HTTP tools, or execute tools in a worker of your own."""


_TOOLS = Resource(
    "/tools", ("id", "name", "url", "idempotent", "created_at"), "TOOL_ID", "HTTP tools"
)
_TOOLS.add_list(tools)
_TOOLS.add_show(tools)
_TOOLS.add_create(tools, shown="signing_secret")
_TOOLS.add_delete(tools)


def _pool(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not _POOL.fullmatch(value):
        raise click.BadParameter(f"must match {_POOL.pattern}")
    return value


@tools.command()
@click.argument("module")
@click.option(
    "--pool",
    required=True,
    callback=_pool,
    help="Name of the pool; personas name it in `tool_workers`.",
)
@serving.options("calls")
@click.option(
    "--lease",
    type=click.IntRange(3, 300),
    default=15,
    show_default=True,
    help="Seconds without a heartbeat after which the service gives the calls up.",
)
def serve(module: str, pool: str, concurrency: int, lease: int, grace_seconds: float) -> None:
    """Execute the tools of MODULE, a Python module or file, for the runs of your org.

    Uses ARKLOOP_URL and ARKLOOP_API_KEY; a key with the single scope `tools.work` is enough. Only
    outbound connections are made. SIGTERM and Ctrl-C end the worker: it fetches no more calls and
    waits for those in progress. A second one ends it at once.

    Exit status: 0 stopped, 1 the key or the tools were refused, or an unexpected error.
    """
    serving.log_to_stderr()
    found = tool_module.load(module)
    worker = ToolWorker(
        find_server(),
        pool,
        found,
        concurrency=concurrency,
        lease_seconds=lease,
        grace_seconds=grace_seconds,
    )
    names = ", ".join(sorted(found))
    serving.serve(worker, f"Worker {worker.id} polls pool {pool} for calls of {names}")
