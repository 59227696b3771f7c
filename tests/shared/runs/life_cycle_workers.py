"""Workers for the state machine: those of production, one statement at a time.

Their events are committed when the machine says so, and Postgres can be gone at any of
their transactions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from decimal import Decimal

from arkloop.shared.catalog import personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.claim import Claim
from arkloop.shared.errors import Unavailable
from arkloop.shared.events import types
from arkloop.shared.events.event_log import text_of
from arkloop.shared.events.turns import still_open
from arkloop.shared.events.types import RunError
from arkloop.shared.events.usage import Usage
from arkloop.shared.files.configured_storage import storage_of
from arkloop.shared.ids import new_id
from arkloop.shared.runs.endings import RunEnder
from arkloop.shared.runs.transitions import recorded_totals
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.worker.agent.loop import Answer
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.attempt.outcome import Failed, Waiting
from arkloop.worker.attempt.recorder import Recorder
from arkloop.worker.contract.outcomes import WaitForInput
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process import history
from arkloop.worker.process.event_writer import EventWriter
from arkloop.worker.process.file_loader import FileLoader
from arkloop.worker.process.history_loader import HistoryLoader
from arkloop.worker.process.route_limits import RouteLimits
from arkloop.worker.process.run_log import RunLog
from tests.shared.runs.life_cycle_model import Happening, ModelAttempt, ModelRun, ModelWorker

PERSONA = personas.builtin()["plain@1"]
#: A call of 7 tokens costs 0.0011 USD: one credit and a bit.
ROUTE = Route(id="scripted", provider="scripted", model="m", prices=Prices(input=Decimal("157.15")))
LATE = Failed(RunError("run.timeout", "It took too long.", True))
ASKED = Waiting(
    WaitForInput(persona=PERSONA, kind="question", prompt="Which?", tool_call_id="call 1")
)


class InterruptedConnections(Connections):
    """After `passing` others, their next transaction meets the outage that is set; only that one.

    `before`: it does not begin. `within`: it is rolled back. `after`: it is committed, and
    nobody learns of it.
    """

    outage: str | None
    passing: int

    @classmethod
    def of(cls, connections: Connections) -> "InterruptedConnections":
        own = cls(**{field.name: getattr(connections, field.name) for field in fields(connections)})
        own.outage, own.passing = None, 0
        return own

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        outage = self._outage_of_next()
        if outage == "before":
            raise Unavailable()
        with super().transaction() as tx:
            yield tx
            if outage == "within":
                raise Unavailable()
            if outage == "after":
                tx.after_commit.clear()
        if outage == "after":
            raise Unavailable()

    @contextmanager
    def statement(self) -> Iterator[Transaction]:
        outage = self._outage_of_next()
        if outage in ("before", "within"):
            raise Unavailable()
        with super().statement() as tx:
            yield tx
            if outage == "after":
                tx.after_commit.clear()
        if outage == "after":
            raise Unavailable()

    def _outage_of_next(self) -> str | None:
        if self.passing:
            self.passing -= 1
            return None
        outage, self.outage = self.outage, None
        return outage


class SteppedWriter(EventWriter):
    """A writer that commits on request, on the caller's thread."""

    def _run(self) -> None:
        pass

    def tick(self) -> None:
        """Commit what the worker's runs have gathered."""
        self._tick()


def begin_attempt(
    connections: InterruptedConnections, run: ModelRun, by: ModelWorker, claim: Claim
) -> ModelAttempt:
    """Begin as `worker/attempt/execution.py` does: text that a lost attempt left open is void."""
    stop = StopSignal()
    log = RunLog(run.id, claim.fence, claim.last_seq, stop, by.writer.mark)
    memory = HistoryLoader(connections).memory
    files = FileLoader(connections, storage_of(connections.settings), memory)
    claimed = ClaimedRun(connections, claim, log, stop, RouteLimits(connections), files)
    recorder = Recorder(connections, claimed, RunEnder(connections))
    attempt = ModelAttempt(run, by, claimed, recorder, run.tokens)
    if claim.is_resumed:
        with connections.reading() as sql:
            lost = still_open(history.own_events(sql, run.id))
            claimed.admission.totals = recorded_totals(sql, run.id)
        assert run.open_text == text_of(lost)
        if lost:
            claimed.reopen(lost)
            claimed.void_lost(lost[0].seq, use(attempt))
            cost = Happening("run.cost", tokens=attempt.tokens)
            attempt.emits(Happening("message.reset"), cost)
    return attempt


def use(attempt: ModelAttempt) -> types.Event:
    """Count a model call."""
    attempt.tokens += 7
    return attempt.claimed.admission.add_usage(ROUTE, Usage(input_tokens=7))


def last_word(content: str, *closing: types.Event) -> Answer:
    """Build what completes a run."""
    message_id = str(new_id())
    completed = types.MessageCompleted(message_id, content, Usage())
    return Answer(
        message_id=message_id, content=content, stop_reason="stop", closing=(completed, *closing)
    )
