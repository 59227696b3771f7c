"""`arkloop`: the one command. A sub-command's module is imported when it is used, not before."""

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NamedTuple

import click

from arkloop.cli.output import print_line, printable

INTERRUPTED = 130
#: Errors of a disk that takes no more of what is written to it, or cannot.
_NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class Entry(NamedTuple):
    """The place of a sub-command in `arkloop.cli`, and its line in `arkloop --help`.

    The help does not import the module.
    """

    place: str
    summary: str


ENTRIES = {
    "dev": Entry("dev.dev:dev", "Run the whole service on this machine."),
    "demo": Entry("dev.demo:demo", "Start everything, ask a real model, replay the run, stop."),
    "run": Entry("client.run:run", "Send a message, run the agent, follow it in the terminal."),
    "runs": Entry("client.runs:runs", "List, show, explain, cancel and answer runs."),
    "personas": Entry("client.catalog:personas", "List, show and publish personas."),
    "routes": Entry("client.catalog:routes", "List the models that runs can name."),
    "providers": Entry("client.catalog:providers", "List, show, create and delete providers."),
    "mcp": Entry("client.catalog:mcp", "Set up MCP servers, and approve their tools."),
    "tools": Entry(
        "serve.tools:tools", "Set up HTTP tools; execute tools in a worker of your own."
    ),
    "agents": Entry("serve.agents:agents", "Execute runs of an agent in a worker of your own."),
    "keys": Entry("keys:keys", "Create, list and revoke API keys; rotate the encryption key."),
    "users": Entry("operator.users:users", "Manage users, directly in the database."),
    "end-users": Entry(
        "operator.end_users:end_users",
        "Export and erase end users, directly in the database.",
    ),
    "credits": Entry(
        "operator.credits:credits",
        "Grant credits to organizations, directly in the database.",
    ),
    "orgs": Entry(
        "operator.orgs:orgs",
        "Set limits and weights of organizations, directly in the database.",
    ),
    "admin": Entry(
        "operator.admin:admin",
        "Queues, workers, stuck runs, retention and operators, directly in the database.",
    ),
    "audit": Entry("operator.audit:audit", "Check and prune audit logs, directly in the database."),
    "rotate-epoch": Entry(
        "operator.rotate_epoch:rotate_epoch",
        "After a restore of Postgres: ignore what Redis holds.",
    ),
    "migrate": Entry("operator.migrate:migrate", "Bring the database's schema up to date."),
    "doctor": Entry("doctor.doctor:doctor", "Check settings, servers, workers; say what to do."),
}


class Commands(click.Group):
    """A group that knows its commands by name; `arkloop run` does not load what `dev` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ENTRIES:
            return None
        module, _, name = ENTRIES[cmd_name].place.partition(":")
        command: click.Command = getattr(import_module(f"arkloop.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in ENTRIES.items()])

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if error.errno not in _NOT_WRITTEN:
                raise
            # Python would try to write the rest of the output once more when it ends.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            what = error.filename or "the output"
            print_line(f"Error: Cannot write {what}: {error.strerror}.", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError:
            raise
        except click.ClickException as error:
            # It may quote a server, a database or a file.
            raise click.ClickException(printable(error.message)) from error
        except KeyboardInterrupt:
            # As a shell reports SIGINT; click itself would say 1.
            click.echo(err=True)
            ctx.exit(INTERRUPTED)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="arkloop-runs")
def main() -> None:
    """Run LLM agents: durable runs, numbered events, replayable streams.

    Commands that need a server use ARKLOOP_URL and ARKLOOP_API_KEY; without them, they use the
    `arkloop dev` of this folder.
    """
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it lives as long as the process
    # A terminal that is not UTF-8 gets question marks, not a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
