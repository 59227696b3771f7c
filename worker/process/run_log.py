"""The events of one held run on their way to Postgres: gathered, numbered, taken in batches."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from arkloop.shared import logs, times
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.types import (
    Event,
    MessageDelta,
    MessageReset,
    MessageThinking,
    ToolCallDelta,
)
from arkloop.worker.contract.outcomes import LimitExceeded
from arkloop.worker.contract.stop_signal import StopSignal

#: Limits, in seconds and characters, on the text that is gathered into one event.
GATHER_SECONDS = 0.04
GATHER_CHARACTERS = 2048
#: A model may send any amount in one piece; every follower gets it in one frame each.
MAX_EVENT_CHARACTERS = 32_768
#: A model that is faster than Postgres waits when this number of events, or of their bytes, is not
#: committed yet.
MAX_BACKLOG = 256
MAX_BACKLOG_BYTES = 1024 * 1024
#: One commit has at most this much of each run: the events of others wait for it.
MAX_TAKEN_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class ArgumentsOf:
    """The kind of text that is a call's arguments; makes the events of it."""

    tool_call_id: str
    name: str

    def __call__(self, text: str) -> ToolCallDelta:
        return ToolCallDelta(self.tool_call_id, self.name, text)


TextKind = type[MessageDelta] | type[MessageThinking] | ArgumentsOf


class RunLog:
    """The outbox of a run: the run's own thread adds, the process's writer takes and commits.

    While a claim holds the run its worker is the only writer, so it numbers the
    events itself, from the claim's `last_seq` on.
    """

    def __init__(
        self,
        run_id: UUID,
        fence: int,
        last_seq: int,
        stop: StopSignal,
        added: Callable[["RunLog"], None],
        now: Callable[[], datetime] = times.now,
        max_bytes: float = float("inf"),
        *,
        server: datetime | None = None,
    ) -> None:
        """Call `added` when there is something to take; `now` is the clock of the events.

        `max_bytes` is what all events of the run may have together, those of earlier attempts too.
        `server` is the start of the Postgres server that stored the last event, None if unknown.
        """
        self.run_id = run_id
        #: What log lines of other threads say of the run.
        self.subject = {**(logs.bound.get() or {}), "run_id": str(run_id)}
        self.fence = fence
        self.stop = stop
        self.now = now
        self.server = server
        self.has_offered = False  # messages wait for the run's next step
        self._added = added
        # Of a plain lock: it is taken for every piece of text, and none of it takes it twice.
        self._changed = threading.Condition(threading.Lock())
        self._last_seq = last_seq
        self._committed_seq = last_seq
        self._ready: list[StoredEvent] = []
        self._in_flight: list[StoredEvent] = []
        self._joined: set[int] = set()  # numbers of events that are stored with the one before
        self._prompts: list[bytes] = []  # for the next event
        self._text: list[str] = []
        self._text_kind: TextKind = MessageDelta
        self._text_length = 0
        self._numbered_at = 0.0
        self._turn_seq: int | None = None  # the first text event of the open turn
        self._is_closed = False  # its last events are withdrawn: none may come behind them
        self._max_bytes = max_bytes
        self._waiting_bytes = 0  # of events that are not committed
        self.written_bytes = 0  # of all numbered events; earlier attempts are added by the caller

    # ---- the run's own thread ----

    def add_text(self, kind: TextKind, text: str) -> None:
        """Gather text of the open turn: the first piece goes at once, the rest every 40 ms."""
        if not text:
            return
        with self._changed:
            if kind != self._text_kind:
                self._number_text()
                self._text_kind = kind
            first = not self._text
            self._text.append(text)
            self._text_length += len(text)
            if self._text_length >= GATHER_CHARACTERS:
                self._number_text()
            backlog = len(self._ready) + len(self._in_flight)
            is_behind = backlog > MAX_BACKLOG or self._waiting_bytes > MAX_BACKLOG_BYTES
        if first or backlog:
            self._added(self)
            # In a greenlet nobody else runs until this one waits; the writer must.
            time.sleep(0)
        if is_behind:
            self.flush()

    def add(self, *events: Event, ends_turn: bool = True) -> int:
        """Number events after the text so far; they are committed together.

        Returns the number of the first. Unless it `ends_turn`, the text before is still open.
        Dropped once the log is closed: they are those of a call that the run has abandoned.
        """
        with self._changed:
            if self._is_closed:
                return self._last_seq
            self._number_text()
            before = self._last_seq
            self._number(*events)
            if ends_turn:
                self._turn_seq = None
        self._added(self)
        return before + 1

    def add_prompt(self, prompt: bytes) -> None:
        """Store a prompt, encoded by `shared/events/prompts.py`, with the event that comes next."""
        with self._changed:
            self._prompts.append(prompt)

    def void_text(self, reason: str, *then: Event) -> None:
        """Void the open turn's text; what was not numbered yet is just dropped."""
        with self._changed:
            self._text.clear()
            self._text_length = 0
            if self._turn_seq is not None:
                self._number(MessageReset(self._turn_seq, reason))
                self._turn_seq = None
            self._number(*then)
        self._added(self)

    def check_size(self) -> None:
        """Check the size. Raises: LimitExceeded: the run has written as much as it may."""
        if self.written_bytes > self._max_bytes:
            raise LimitExceeded(
                "run.output_limit",
                f"The run's events exceed {self._max_bytes / 2**20:g} MiB, the most this server"
                " stores for a run.",
            )

    def flush(self) -> None:
        """Return when all that was added is committed; raises what stops the run meanwhile."""
        with self._changed:
            self._number_text()
            target = self._last_seq
        self._added(self)
        while True:
            self.stop.check()
            with self._changed:
                if self._committed_seq >= target:
                    return
                self._changed.wait(0.5)

    def withdraw(self, *events: Event, closes: bool = False) -> list[StoredEvent]:
        """Return everything uncommitted and `events`, numbered, for the caller to commit.

        If that `closes` the log, nothing is added behind them, unless they are retracted.
        """
        with self._changed:
            # Waited for before the last events are there: the writer must not take those.
            while self._in_flight:
                if self.stop.lease_lost:
                    raise LeaseLost()
                self._changed.wait(0.5)
            self._number_text()
            self._number(*events)
            taken, self._ready = self._ready, []
            self._measure()
            self._is_closed = self._is_closed or closes
            return taken

    def retract(self, withdrawn: list[StoredEvent], last: int) -> None:
        """Forget the `last` of what the caller withdrew and did not store, and keep the rest."""
        with self._changed:
            kept = len(withdrawn) - last
            self._ready[:0] = withdrawn[:kept]
            self._prompts[:0] = [event.prompts for event in withdrawn[kept:] if event.prompts]
            self._measure()
            self._last_seq -= last
            self._is_closed = False

    def stored(self, withdrawn: list[StoredEvent]) -> None:
        """Record that the caller has stored what it withdrew, with which the open turn ends."""
        with self._changed:
            self._committed_seq = withdrawn[-1].seq
            self._joined.difference_update(event.seq for event in withdrawn)
            self._turn_seq = None

    # ---- the writer's thread ----

    def take(
        self, gather_seconds: float = GATHER_SECONDS
    ) -> tuple[list[StoredEvent], float | None]:
        """Return what to commit now, and the seconds until more is due (None: not by time)."""
        with self._changed:
            self._return_taken()  # where no memory was left for that
            due_in: float | None = None
            if self._text:
                due_in = self._numbered_at + gather_seconds - time.monotonic()
                if due_in <= 0 or self._text_length >= GATHER_CHARACTERS:
                    self._number_text()
                    due_in = None
            count = _fitting(self._ready, MAX_TAKEN_BYTES, self._joined)
            self._in_flight, self._ready = self._ready[:count], self._ready[count:]
            return self._in_flight, 0.0 if self._ready else due_in

    def committed(self) -> None:
        """Record that what was taken is stored."""
        with self._changed:
            if self._in_flight:
                self._committed_seq = self._in_flight[-1].seq
                self._joined.difference_update(event.seq for event in self._in_flight)
            self._in_flight = []
            self._measure()
            self._changed.notify_all()

    def discard(self) -> None:
        """Drop what was taken and can never be stored; its numbers are free again."""
        with self._changed:
            self._in_flight, self._ready = [], []
            self._joined.clear()
            self._measure()
            self._text.clear()
            self._text_length = 0
            self._last_seq = self._committed_seq
            self._turn_seq = None
            self._changed.notify_all()

    def give_back(self) -> None:
        """Return what was taken and could not be stored now; it comes first at the next take."""
        with self._changed:
            self._return_taken()
            self._changed.notify_all()

    # ---- under the lock ----

    def _return_taken(self) -> None:
        if self._in_flight:  # both or none: without memory for one, nothing is lost or there twice
            self._ready, self._in_flight = [*self._in_flight, *self._ready], []

    def _number_text(self) -> None:
        if self._text:
            if self._turn_seq is None:
                self._turn_seq = self._last_seq + 1
            text = "".join(self._text)
            for start in range(0, len(text), MAX_EVENT_CHARACTERS):
                self._number(self._text_kind(text[start : start + MAX_EVENT_CHARACTERS]))
            self._text.clear()
            self._text_length = 0
            self._numbered_at = time.monotonic()

    def _number(self, *events: Event) -> None:
        now = self.now()
        first = self._last_seq + 1
        # All of them are encoded before one is numbered: what cannot be encoded leaves no hole.
        encoded = [encode(first + i, event, now) for i, event in enumerate(events)]
        if self._prompts and encoded:
            encoded[0] = encoded[0]._replace(prompts=b"".join(self._prompts))
            self._prompts.clear()
        self._ready.extend(encoded)
        self._joined.update(event.seq for event in encoded[1:])
        self.written_bytes += sum(event.size for event in encoded)
        self._waiting_bytes += sum(event.stored_size for event in encoded)
        self._last_seq += len(encoded)

    def _measure(self) -> None:
        self._waiting_bytes = sum(event.stored_size for event in (*self._ready, *self._in_flight))


def _fitting(events: list[StoredEvent], most: int, joined: set[int]) -> int:
    """Return how many of the events fit into `most` bytes; those that are `joined` stay together.

    The first one, with those joined to it, is taken in any case: a turn that was stored without
    its calls would be taken for the last word if the worker died then.
    """
    count = 0
    for end, event in enumerate(events):
        if event.seq not in joined:
            count = end
        most -= event.stored_size
        if most < 0 and count > 0:
            return count
    return len(events)
