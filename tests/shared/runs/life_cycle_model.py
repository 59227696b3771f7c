"""The model of a run, as plain Python: no SQL, no locks, no fences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from arkloop.shared.events.types import (
    MessageCompleted,
    MessageDelta,
    MessageReset,
    RunCost,
    RunInputReceived,
    RunResumed,
    RunStarted,
    ToolResult,
)
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.attempt.recorder import Recorder
from arkloop.worker.process.run_log import RunLog

MAX_CRASHES = 3
#: A crash after one of these is the first one within the next step.
STEP_ENDS = {MessageCompleted.type, ToolResult.type, RunInputReceived.type}
#: After one of these no text is open.
TEXT_ENDS = {MessageCompleted.type, MessageReset.type}


class Writer(Protocol):
    """A writer that commits what a worker's runs have gathered, on request."""

    def mark(self, run_log: RunLog) -> None: ...

    def tick(self) -> None: ...


@dataclass(eq=False)
class ModelWorker:
    """A worker process; `is_silent` is how the others see it, it may go on all the same."""

    id: UUID
    writer: Writer
    is_silent: bool = False


@dataclass
class Happening:
    """An event on its way to Postgres; `tokens` are what the run has used by then."""

    type: str
    text: str = ""
    tokens: int = 0
    is_numbered: bool = True
    is_stored: bool = False  # by a commit whose answer got lost


@dataclass(eq=False)
class ModelAttempt:
    """A claim, and what its worker believes; it may be over without the worker knowing."""

    run: "ModelRun"
    worker: ModelWorker
    claimed: ClaimedRun
    recorder: Recorder
    tokens: int
    unwritten: list[Happening] = field(default_factory=list)
    text: str = ""  # of the open turn
    turn_is_numbered: bool = False
    has_finished_a_step: bool = False

    @property
    def holds(self) -> bool:
        return self.run.holder is self

    def streams(self, text: str) -> None:
        """Gather text into one event until something numbers it."""
        self.text += text
        last = self.unwritten[-1] if self.unwritten else None
        if last is not None and not last.is_numbered:
            last.text += text
        else:
            self.unwritten.append(Happening(MessageDelta.type, text, is_numbered=False))

    def emits(self, *happened: Happening) -> None:
        self.number()
        self.unwritten.extend(happened)
        self.has_finished_a_step |= any(happening.type in STEP_ENDS for happening in happened)
        self.text = ""
        self.turn_is_numbered = False

    def voids(self) -> None:
        """Drop what was not numbered, and reset what was."""
        self.text = ""
        self.unwritten = [happening for happening in self.unwritten if happening.is_numbered]
        if self.turn_is_numbered:
            self.unwritten.append(Happening(MessageReset.type))
            self.turn_is_numbered = False

    def number(self) -> None:
        for happening in self.unwritten:
            self.turn_is_numbered |= not happening.is_numbered
            happening.is_numbered = True

    def writes(self, *, is_told: bool = True) -> None:
        """Store all that is unwritten; the worker knows it only if it `is_told`."""
        self.number()
        for happening in self.unwritten:
            if not happening.is_stored:
                self.run.happens(happening)
                happening.is_stored = True
        if is_told:
            self.unwritten.clear()


@dataclass(eq=False)
class ModelRun:
    """A run as its clients and workers must find it."""

    id: UUID
    thread: "ModelThread"
    position: int
    state: RunState = RunState.QUEUED
    types: list[str] = field(default_factory=list)
    attempts: int = 0  # the first, and those after a lost worker
    was_lost: bool = False
    crashes: int = 0  # within the step
    owner: ModelWorker | None = None
    holder: ModelAttempt | None = None
    is_cancelling: bool = False
    question: UUID | None = None
    is_expired: bool = False
    answers: dict[UUID, str] = field(default_factory=dict)
    unread: list[UUID] = field(default_factory=list)
    begun_by: dict[str, ModelAttempt] = field(default_factory=dict)  # calls of tools
    outputs: dict[str, str] = field(default_factory=dict)  # of those that have ended
    open_text: str = ""
    is_counted: bool = True  # the open text is, or there is none
    has_estimate: bool = False  # of a lost call, on top of the tokens
    tokens: int = 0
    message: tuple[str, bool] | None = None  # content, partial
    error: str | None = None

    def happens(self, *happened: Happening) -> None:
        """Record that these are stored."""
        for happening in happened:
            self.types.append(happening.type)
            if happening.type in STEP_ENDS:
                self.crashes = 0
            if happening.type in TEXT_ENDS:
                self.open_text, self.is_counted = "", True
            if happening.type == MessageDelta.type:
                self.open_text += happening.text
                self.is_counted = False
            if happening.type == RunCost.type:
                self.tokens, self.is_counted = happening.tokens, True

    def is_claimed(self, worker: ModelWorker) -> None:
        """Give the run to the worker, and read its inputs."""
        self.state = RunState.EXECUTING
        self.owner = worker
        if self.attempts == 0:
            self.attempts = 1
            self.happens(Happening(RunStarted.type))
            return
        self.attempts += self.was_lost
        self.was_lost = False
        self.happens(Happening(RunResumed.type))
        self.happens(*(Happening(RunInputReceived.type) for _ in self.unread))
        self.unread.clear()

    def is_let_go(self, state: RunState) -> None:
        self.state = state
        self.holder = None
        if state.is_terminal:
            self.question = None

    def ends_unheld(self, state: RunState, error: str | None = None) -> None:
        """End it by the API or the sweep: open text is kept as a part, and billed."""
        self.is_let_go(state)
        self.error = error
        if not self.is_counted:
            self.types.append(RunCost.type)
            self.has_estimate = True
        self.types.append(f"run.{state}")
        if self.open_text:
            self.message = (self.open_text, True)
            self.thread.is_answered(self)

    def is_lost(self, *, is_crash: bool = True) -> None:
        """Lose the run's owner."""
        if self.is_cancelling:
            self.ends_unheld(RunState.CANCELLED)
            return
        self.crashes += is_crash
        if self.crashes >= MAX_CRASHES:
            self.ends_unheld(RunState.FAILED, "worker.crashed")
        else:
            self.was_lost = True
            self.is_let_go(RunState.QUEUED)

    def is_answered(self, content: str) -> None:
        assert self.question is not None
        self.answers[self.question] = content
        self.unread.append(self.question)
        self.question = None
        self.is_expired = False
        self.is_let_go(RunState.QUEUED)


@dataclass(eq=False)
class ModelThread:
    """`said` is what its people see: message texts by position."""

    id: UUID
    runs: list[ModelRun] = field(default_factory=list)
    said: dict[int, str] = field(default_factory=dict)
    answered_by: dict[int, ModelRun] = field(default_factory=dict)

    @property
    def active(self) -> ModelRun | None:
        active = [run for run in self.runs if not run.state.is_terminal]
        assert len(active) <= 1
        return active[0] if active else None

    @property
    def visible(self) -> Sequence[str]:
        return [self.said[position] for position in sorted(self.said)]

    def is_answered(self, run: ModelRun) -> None:
        assert run.message is not None
        self.said[run.position] = run.message[0]
        self.answered_by[run.position] = run

    def is_retried(self) -> None:
        """Remove the last message if it is an answer."""
        last = max(self.said)
        if last in self.answered_by:
            del self.said[last]
