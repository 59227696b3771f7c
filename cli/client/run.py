"""`arkloop run`: a message to an agent, its run in the foreground, its answer in the terminal."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from arkloop.cli.client import standard_input
from arkloop.cli.client.client import Client, Refused, Unreachable
from arkloop.cli.client.display import Display, display_for
from arkloop.cli.client.foreground_run import (
    CANCELLING,
    INTERRUPTED,
    ForegroundRun,
    Interrupts,
    interrupts,
)
from arkloop.cli.client.keyboard import Keyboard
from arkloop.cli.client.run_options import fields_of, run_options
from arkloop.cli.client.server_address import find_server


class _Uncertain(click.ClickException):
    """An error after which the run may have started."""


@click.command()
@click.argument("message")
@click.option("--thread", type=click.UUID, help="Continue this thread; by default start a new one.")
@click.option(
    "--persona", metavar="KEY[@VERSION]", help=("Persona that answers; `assistant` by default.")
)
@click.option(
    "--route", metavar="ID", help=("Model that answers; the server's default if not given.")
)
@click.option(
    "--file",
    "--image",
    "files",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Send this image, PDF or text file, too; may be repeated.",
)
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print each event's JSON, one per line.")
def run(
    message: str,
    thread: UUID | None,
    persona: str | None,
    route: str | None,
    files: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Send MESSAGE (`-`: standard input), run the agent and follow it to its end.

    In a pipe, standard output gets only the answer, one model turn at a time, or with --json the
    events; everything else goes to standard error. When the run asks a question, type the answer;
    without a terminal it is read from the next line of standard input. If that has ended, or stays
    silent for 10 seconds, the command exits with status 1 and the run keeps waiting: `arkloop runs
    input` answers it.

    Ctrl-C cancels the run, or while files are sent ends the command without one; a second Ctrl-C
    exits at once. If this process is killed, the run continues: `arkloop runs events` follows it,
    `arkloop runs cancel` ends it. A run that was there before and takes the message, as the
    thread's `on_busy` may say, is left alone by Ctrl-C.

    Exit status: 0 completed, 1 failed or any error, 2 invalid usage, 130 cancelled.
    """
    if message == "-":
        message = standard_input.read_text()
    _check(message)
    fields = fields_of(**options)
    client = Client(find_server())
    display = display_for(as_json=as_json)
    with interrupts() as interrupted:
        interrupted.tell = lambda: display.note(CANCELLING, "yellow")
        with _uploaded(client, files, interrupted) as parts:
            _end_if(interrupted)
            interrupted.tell = lambda: None  # the run that is made next prints it
            content = [{"type": "text", "text": message}, *parts] if parts else message
            thread_id = None if thread is None else str(thread)
            choice = {"thread_id": thread_id, "persona_id": persona, "route_id": route, **fields}
            made = _start(client, display, content, choice)
        sys.exit(_followed(client, display, made, interrupted))


def _check(message: str) -> None:
    """Refuse what the server would refuse, before anything is created there."""
    if not message:
        raise click.UsageError("MESSAGE is empty.")
    try:
        message.encode()
    except UnicodeEncodeError:
        raise click.UsageError("MESSAGE is not valid UTF-8.") from None


@contextmanager
def _uploaded(
    client: Client, paths: Sequence[Path], interrupted: Interrupts
) -> Iterator[list[dict[str, str]]]:
    """Store the files and yield the parts of a message for them; an error or Ctrl-C deletes them
    where it can, unless the service became unreachable, or a run that uses them may have started.
    """
    for path in paths:
        if not path.is_file():  # a pipe, for example: its size is not known before it is sent
            raise click.UsageError(f"{path} is not a regular file.")
    ids: list[str] = []
    try:
        parts = []
        for path in paths:
            _end_if(interrupted)
            file = client.upload(path)
            ids.append(file["id"])
            kind = "image" if file["media_type"].startswith("image/") else "file"
            parts.append({"type": kind, "file_id": file["id"]})
        yield parts
    except _Uncertain as error:
        if not ids:
            raise
        raise click.ClickException(f"{error.message} Its files are kept.") from error
    except Unreachable:
        raise
    except (click.ClickException, click.exceptions.Exit):
        for file_id in ids:
            with suppress(click.ClickException):
                client.delete(f"/files/{file_id}")
        raise


def _end_if(interrupted: Interrupts) -> None:
    """End the command after Ctrl-C, before there is a run."""
    if interrupted.count:
        raise click.exceptions.Exit(INTERRUPTED)


def _followed(
    client: Client, display: Display, made: dict[str, Any], interrupted: Interrupts
) -> int:
    """Follow the run that answers the message; returns the exit status."""
    watched = partial(ForegroundRun, client, display, interrupted=interrupted, keyboard=Keyboard())
    run_id, steer = made["run_id"], made.get("steer")
    if steer is None:
        return watched(run_id, is_own="is_merged" not in (made.get("queue") or {})).follow()
    display.note("The thread's active run gets the message; what follows:")
    active = watched(run_id, is_own=False, message_id=steer["message_id"])
    status = active.follow()
    if active.was_left or active.has_read:
        return status
    display.note("It has ended without the message, which a run of its own answers:")
    return watched(steer["fallback_run_id"]).follow()


def _start(
    client: Client, display: Display, message: Any, choice: dict[str, Any]
) -> dict[str, Any]:
    """Start the run and return the response; of one that is refused nothing is left behind."""
    try:
        made = client.post("/runs", {"message": {"content": message}, **choice})
    except (Refused, Unreachable) as error:
        if not error.is_final:
            text = f"{error.message} The run may have started: see `arkloop runs list`."
            raise _Uncertain(text) from error
        if isinstance(error, Unreachable) or "active_run_id" not in error.details:
            raise
        active = error.details["active_run_id"]
        advice = (
            f"The thread has an active run: see `arkloop runs show {active}`, "
            f"or end it with `arkloop runs cancel {active}`."
        )
        raise Refused(error.status, error.code, advice) from None
    display.note(f"run {made['run_id']} in thread {made['thread_id']}")
    return made
