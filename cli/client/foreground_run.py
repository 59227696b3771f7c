"""A run that a person or a script watches: its events, its questions, their Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from types import FrameType
from typing import Any

import click

from arkloop.cli.client.answers import content_of
from arkloop.cli.client.client import Client, Refused
from arkloop.cli.client.display import Display, in_full
from arkloop.cli.client.event_stream import RunEvent, follow
from arkloop.cli.client.keyboard import Keyboard, NoLine

INTERRUPTED = 130
CANCELLING = "Cancelling; press Ctrl-C again to exit without waiting."
STATUS_OF_END = {"run.completed": 0, "run.failed": 1, "run.cancelled": INTERRUPTED}
CONFLICT, INVALID = 409, 422
#: A run that has not begun by then has somebody to wait for; the server knows whom.
QUEUED_SECONDS = 3.0


class Interrupts:
    """Ctrl-C, pressed since `interrupts` began; `tell` is called at the first one."""

    def __init__(self) -> None:
        self.count = 0
        self.tell: Callable[[], None] = lambda: None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        self.tell()


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Keep a first Ctrl-C from losing events by an interruption; a second one exits."""
    handler = Interrupts()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # a shell's `&`: its Ctrl-C is for others
        signal.signal(signal.SIGINT, handler)
    try:
        yield handler
    finally:
        signal.signal(signal.SIGINT, before)


class ForegroundRun:
    """A run that the terminal follows to its end.

    Events, answers, Ctrl-C and the stream's failure come from threads and a signal
    handler; all of them meet in one inbox, and the main thread does one at a time.
    """

    def __init__(
        self,
        client: Client,
        display: Display,
        run_id: str,
        interrupted: Interrupts,
        keyboard: Keyboard,
        *,
        is_own: bool = True,
        message_id: str | None = None,
    ) -> None:
        """Prepare to follow the run, with a `message_id` from where it has read this message.

        It takes `interrupted` and `keyboard` over from the run that was followed before.
        `is_own`: this command has created it, so that Ctrl-C cancels it.
        """
        self.was_left = False  # by Ctrl-C, before its end
        self.has_read = message_id is None
        self._is_own = is_own
        self._message_id = message_id
        self._client = client
        self._display = display
        self._run_id = run_id
        # SimpleQueue: its `put` may be called by a signal handler.
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._keyboard = keyboard
        keyboard.give = lambda line: self._inbox.put(lambda: self._answer(line))
        self._arguments: dict[str, Any] = {}  # of each call so far, by its id
        self._question: dict[str, Any] | None = None
        self._status: int | None = None
        self._has_begun = False
        interrupted.tell = lambda: self._inbox.put(self._cancel)
        if interrupted.count:
            # Pressed while the run was being made.
            interrupted.tell()

    def follow(self) -> int:
        """Show everything up to the run's end; the exit status.

        Raises:
            click.ClickException: the run cannot be followed, or waits and nobody answers.
        """
        threading.Thread(target=self._read_events, name="events", daemon=True).start()
        late = threading.Timer(QUEUED_SECONDS, self._explain_queue)
        late.daemon = True
        late.start()
        while self._status is None:
            self._inbox.get()()
        late.cancel()
        return self._status

    def _explain_queue(self) -> None:
        """Print why a queued run has to wait."""
        if self._has_begun:
            return
        try:
            degraded = self._client.get(f"{self._client.server.url}/readyz").get("degraded", [])
            note = (
                "No worker is running: the run stays queued until one is started."
                if "workers" in degraded
                else self._client.get(f"/runs/{self._run_id}:explain")["sentence"]
            )
        except click.ClickException:
            return  # following the run tells what is wrong with the server
        self._inbox.put(lambda: None if self._has_begun else self._display.note(note, "yellow"))

    def _read_events(self) -> None:
        try:
            for event in follow(self._client, self._run_id, tell=self._note_later):
                self._inbox.put(partial(self._take, event))
        except BaseException as error:
            self._inbox.put(partial(_raise, error))

    def _note_later(self, text: str) -> None:
        self._inbox.put(lambda: self._display.note(text, "yellow"))

    def _take(self, event: RunEvent) -> None:
        self._has_begun = True
        if event.type == "run.steered" and event.data["message_id"] == self._message_id:
            self.has_read = True
        if self.has_read:
            self._display.show(event)
        if event.type == "tool.call":
            self._arguments[event.data["tool_call_id"]] = event.data["arguments"]
        if event.type == "run.waiting_for_input" and not self._is_open(event.data):
            pass
        elif event.type == "run.waiting_for_input" and event.data["kind"] == "tool_results":
            self._show_calls(event.data["calls"])
        elif event.type == "run.waiting_for_input":
            self._question = event.data
            self._ask(event.data)
        elif event.type in ("run.input_received", "run.resumed") or event.is_terminal:
            self._question = None
        self._status = STATUS_OF_END.get(event.type)

    def _is_open(self, request: dict[str, Any]) -> bool:
        """Return whether a request may be open: those before the message may have got a reply."""
        if self.has_read:
            return True
        pending = self._client.get(f"/runs/{self._run_id}")["pending_input"]
        return pending is not None and bool(pending["request_id"] == request["request_id"])

    def _show_calls(self, calls: list[dict[str, Any]]) -> None:
        """Show the calls that a client has to make; this one only follows the run."""
        self._display.note("The run waits for the results of client tools:", "bold")
        for call in calls:
            self._display.note(f"  {call['tool_call_id']}  {call['name']}", "")
            self._display.note(in_full(call["arguments"]), "")
        self._display.note(f"Send them with: arkloop runs result {self._run_id} CALL_ID OUTPUT")

    def _ask(self, question: dict[str, Any]) -> None:
        self._keyboard.forget()
        self._display.note(f"? {question['prompt']}", "bold")
        if question["kind"] == "tool_confirmation":
            self._display.note(in_full(self._arguments[question["tool_call_id"]]), "")
            self._display.note(
                "`yes` runs it, a JSON object runs it with those arguments, `no` and a"
                " reason denies it; anything else repeats the question:"
            )
        elif options := question.get("options"):
            if schema := question.get("schema"):
                self._display.note("Type a JSON object that fits this schema, or a choice:")
                self._display.note(in_full(schema), "")
            if url := question.get("url"):
                self._display.note(f"Visit {url}", "")
            for number, option in enumerate(options, 1):
                self._display.note(f"  {number}) {option}", "")
            self._display.note("Type an answer, or the number of one:")
        else:
            self._display.note("Type the answer:")
        self._keyboard.ask()

    def _answer(self, line: str | NoLine) -> None:
        question = self._question
        if question is None:
            return  # somebody else was faster, or the run has ended
        if isinstance(line, NoLine):
            raise click.ClickException(
                f"The run is waiting for an answer, and {line.value}: "
                f"arkloop runs input {self._run_id} ANSWER, "
                f"then arkloop runs events {self._run_id}"
            )
        try:
            arguments = self._arguments.get(question.get("tool_call_id") or "", {})
            content = content_of(line.strip(), question, arguments)
        except (ValueError, RecursionError) as error:
            self._ask_again(click.ClickException(f"This is not valid JSON: {error}"))
            return
        if not content:
            self._keyboard.ask()
            return
        body = {"content": content, "request_id": question["request_id"]}
        try:
            self._client.post(f"/runs/{self._run_id}/input", body)
        except Refused as refused:
            if refused.status == CONFLICT and refused.is_final:
                self._question = None
                self._display.note(f"Answer not accepted: {refused.message}", "yellow")
            elif refused.status == INVALID:
                self._ask_again(refused)
            else:
                raise
        else:
            self._question = None

    def _ask_again(self, refusal: click.ClickException) -> None:
        """Let a user correct the answer; in a pipe raise the refusal."""
        if not self._keyboard.is_terminal:
            raise refusal
        self._display.note(refusal.message, "red")
        self._keyboard.ask()

    def _cancel(self) -> None:
        if not self._is_own:
            self.was_left = True
            self._status = INTERRUPTED
            note = f"Run {self._run_id} continues; `arkloop runs cancel {self._run_id}` ends it."
            self._display.note(note, "yellow")
            return
        self._display.note(CANCELLING, "yellow")
        try:
            self._client.post(f"/runs/{self._run_id}:cancel")
        except click.ClickException as error:
            raise click.ClickException(
                f"Could not cancel: {error.message} Try again with: "
                f"arkloop runs cancel {self._run_id}"
            ) from error


def _raise(error: BaseException) -> None:
    raise error
