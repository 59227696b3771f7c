"""`arkloop runs`: look at runs, explain, cancel and answer them, read their events."""

import sys
from functools import partial
from itertools import islice
from uuid import UUID

import click

from arkloop.cli.client import standard_input
from arkloop.cli.client.client import Client
from arkloop.cli.client.event_stream import RunEvent, follow
from arkloop.cli.client.server_address import find_server
from arkloop.cli.listing import print_explanation, print_record, print_rows
from arkloop.cli.output import (
    compact,
    escaped,
    print_json,
    print_line,
    shortened,
    write,
    write_json,
)

COLUMNS_IN_THREAD = ("run_id", "status", "created_at")
COLUMNS = (
    *COLUMNS_IN_THREAD,
    *("duration_ms", "total_cost_usd", "total_input_tokens", "total_output_tokens"),
    *("model", "persona_id"),
)
STATUSES = ("running", "waiting_for_input", "completed", "failed", "cancelled")
#: Longest data of an event on a terminal.
SHOWN_CHARACTERS = 120

_run_id = click.argument("run_id", type=click.UUID)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the API's JSON.")


@click.group()
def runs() -> None:
    """List, show, explain, cancel and answer runs; read their events."""


@runs.command("list")
@click.option("--status", type=click.Choice(STATUSES))
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--thread", type=click.UUID, help="Only the runs of this thread.")
@_as_json
def list_(status: str | None, limit: int, thread: UUID | None, as_json: bool) -> None:
    """List runs, newest first.

    In a pipe each is one line of tab-separated fields without a header: run_id, status, created_at,
    duration in ms, cost in USD, input tokens, output tokens, model, persona_id; with --thread only
    the first three. `-` marks a missing value.
    """
    client = Client(find_server())
    if thread is None:
        rows = client.rows("/runs", limit=limit, status=status)
    else:
        # The endpoint of a thread has no filter.
        pages = client.rows(f"/threads/{thread}/runs", limit=limit)
        rows = (row for row in pages if status in (None, row["status"]))
    found = list(islice(rows, limit))
    if as_json:
        print_json(found)
    else:
        print_rows(COLUMNS if thread is None else COLUMNS_IN_THREAD, found)


@runs.command()
@_run_id
@_as_json
def show(run_id: UUID, as_json: bool) -> None:
    """Show the details of a run, one field per line."""
    found = Client(find_server()).get(f"/runs/{run_id}")
    (print_json if as_json else print_record)(found)


@runs.command()
@_run_id
@_as_json
def explain(run_id: UUID, as_json: bool) -> None:
    """Explain why a run is where it is, and what happens to it next.

    The first line is the sentence; then its code, and the ids and times behind it, one field per
    line.
    """
    print_explanation(Client(find_server()).get(f"/runs/{run_id}:explain"), as_json)


@runs.command()
@_run_id
def cancel(run_id: UUID) -> None:
    """Cancel a run; a run that has ended is left unchanged."""
    Client(find_server()).post(f"/runs/{run_id}:cancel")
    print_line("ok")


@runs.command("input")
@_run_id
@click.argument("content")
@click.option(
    "--request-id",
    type=click.UUID,
    help=("Id of the input request to answer; makes it safe to repeat the command."),
)
def give_input(run_id: UUID, content: str, request_id: UUID | None) -> None:
    """Answer a run that waits for input.

    A run that waits for the approval of a tool call executes it after `yes`, and denies it
    after `no`, which a reason may follow; `{"decision": "edit", "arguments": {…}}` executes it with
    other arguments. After an unclear reply it asks again. `show` prints the question.
    """
    body = {"content": content, "request_id": str(request_id) if request_id else None}
    Client(find_server()).post(f"/runs/{run_id}/input", body)
    print_line("ok")


@runs.command()
@_run_id
@click.argument("tool_call_id")
@click.argument("output")
@click.option("--error", is_flag=True, help="The call has failed: OUTPUT says why.")
def result(run_id: UUID, tool_call_id: str, output: str, error: bool) -> None:
    """Send the result of a client tool's call to a run that waits for it.

    The model reads OUTPUT (`-`: standard input) as it is. `show` prints the calls whose results are
    missing, with their arguments; the same command again changes nothing.
    """
    if output == "-":
        output = standard_input.read_text()
    body = [{"tool_call_id": tool_call_id, "output": output, "is_error": error}]
    Client(find_server()).post(f"/runs/{run_id}/tool-results", body)
    print_line("ok")


@runs.command()
@_run_id
@click.option(
    "--after-seq", type=click.IntRange(0), default=0, help=("Start after this event number.")
)
@click.option(
    "--follow/--no-follow",
    "wait",
    default=True,
    help=("Wait for new events, or stop after the last one."),
)
@_as_json
def events(run_id: UUID, after_seq: int, wait: bool, as_json: bool) -> None:
    """Print a run's events, by default until its end; Ctrl-C exits and cancels nothing.

    In a pipe each is one line of tab-separated fields: seq, type, created_at, data (JSON). With
    --json each line is the event's own JSON. The exit status does not depend on how the run ended.
    """
    client = Client(find_server())
    # A wrong id or an unreachable server is reported at once, not retried.
    client.get(f"/runs/{run_id}")
    tell = partial(print_line, err=True)
    for event in follow(client, str(run_id), after_seq, wait=wait, tell=tell):
        _print_event(event, as_json=as_json)


def _print_event(event: RunEvent, *, as_json: bool) -> None:
    if as_json:
        write_json(event.text)
        return
    data = escaped(compact(event.data))
    if sys.stdout.isatty():
        line = f"{event.seq:>5}  {event.type:<21}  {shortened(data, SHOWN_CHARACTERS)}"
    else:
        line = f"{event.seq}\t{event.type}\t{event.created_at}\t{data}"
    write(f"{line}\n")
