"""The events of one run on their way to the service: gathered, numbered, sent until it has them."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from arkloop.cli.client.client import Refused
from arkloop.cli.serve.service import Service, Unreachable, encoded
from arkloop.shared.agents.agent_run import RunStopped, StopReason
from arkloop.shared.events import types
from arkloop.shared.events.types import (
    Event,
    MessageCompleted,
    MessageDelta,
    MessageReset,
    MessageThinking,
    ToolCallRequested,
    ToolResult,
)
from arkloop.shared.events.usage import TOKEN_FIELDS

log = logging.getLogger(__name__)

#: The first piece of text goes at once, the rest after this time, gathered.
GATHER_SECONDS = 0.04
MAX_TEXT_CHARACTERS = 8_192  # of one event, at most 32 KiB of UTF-8
#: One request has at most so much; the service accepts 4 MiB, 2 before, and 500 events.
MAX_EVENTS = 200
MAX_BATCH_BYTES = 512 * 1024
#: Of the request that ends the run, with the last events; a longer one has none.
MAX_END_BYTES = 1024 * 1024
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 2.0

#: Fields that a service of the release before refuses.
NEW_FIELDS = ("unbegun", "code")
NO_APPROVALS = (
    "The service is of an earlier release, which knows no approvals of agents' calls: upgrade it."
)
OUTDATED = ("agent_workers.outdated_fence", "runs.not_found")

TextKind = type[MessageDelta] | type[MessageThinking]


class RunOutbox:
    """Numbers and sends the events of a run; any thread may add, and one request is made at a time.

    `stop` is called with the reason if a response says that the run has to stop.
    """

    def __init__(
        self,
        service: Service,
        run: Mapping[str, Any],
        stop: Callable[[StopReason], None],
    ) -> None:
        self._service = service
        self._claim = {"run_id": run["run_id"], "fence": run["fence"]}
        self._stop = stop
        self._next_seq = int(run["next_seq"])
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._added = threading.Event()
        self._closed = self._is_lost = False
        #: Why events that were added can never be stored.
        self._broken: StopReason | None = None
        self._ready: list[tuple[int, dict[str, Any]]] = []
        self._text: list[str] = []
        self._kind: TextKind = MessageDelta
        self._open: list[str] = []  # the text of the turn that is not finished
        self._open_seq: int | None = None
        threading.Thread(target=self._send_forever, name="append", daemon=True).start()

    @property
    def open_text(self) -> str:
        return "".join(self._open)

    def add_text(self, kind: TextKind, text: str) -> None:
        """Gather a piece of the open turn."""
        if not text:
            return
        with self._lock:
            if kind is not self._kind:
                self._number_text()
                self._kind = kind
            self._text.append(text)
            if kind is MessageDelta:
                self._open.append(text)
        self._added.set()

    def add(self, *events: Event) -> None:
        """Number events after the text so far, which they finish."""
        with self._lock:
            self._number_text()
            self._open.clear()
            self._open_seq = None
        self.note(*events)

    def note(self, *events: Event) -> None:
        """Number events after the text so far; the open turn stays open."""
        with self._lock:
            self._number_text()
            for event in events:
                self._number(_wire(event))
        self._added.set()

    def add_cost(self, cost: Mapping[str, Any]) -> None:
        """Add the cost of a model call; the open turn stays open."""
        with self._lock:
            self._number_text()
            self._number({"type": types.RunCost.type, **cost})
        self._added.set()

    def void_text(self) -> None:
        """Void the open turn's text; what was not numbered yet is just dropped."""
        with self._lock:
            self._text.clear()
            if self._open_seq is not None:
                self._number({"type": MessageReset.type, "from_seq": self._open_seq})
            self._open.clear()
            self._open_seq = None

    def flush(self) -> None:
        """Return when all that was added is stored. Raises: RunStopped."""
        self._send("append", {})

    def send(self, verb: str, *ended: Event, **fields: Any) -> None:
        """Add the end of the turn, if it is given, and send everything, the last part with this
        request, which has that end. Raises: RunStopped, Refused.
        """
        with self._sending:  # nobody else sends the end before
            if ended:
                self.add(*ended)
            self._send_all(verb, fields)

    def reserve(self, usd: float, *, gives_up: bool) -> bool:
        """Send everything, then reserve; False: not now. Raises: RunStopped, Refused."""
        with self._sending:
            self._send_all("append", {})
            written = self._post("reserve", {**self._claim, "usd": usd, "gives_up": gives_up})
            return bool(written["is_reserved"])

    def begin(self, tool_call_id: str) -> None:
        """Send everything, then record that a call of an earlier execution is made now.

        A service of the release before cannot record it: the run goes back to the queue, since a
        later execution could make a call again of whose beginning nothing is on record.

        Raises: RunStopped, Refused.
        """
        with self._sending:
            self._send_all("append", {})
            try:
                self._post("append", {**self._claim, "events": [], "begun": [tool_call_id]})
            except Refused as error:
                if "begun" not in error.details:
                    raise
                run_id = self._claim["run_id"]
                log.warning("run %s is released: the service is of an earlier release", run_id)
                time.sleep(MAX_PAUSE_SECONDS)  # the next poll may be of a newer process again
                self._stop("shutdown")
                raise RunStopped("shutdown") from None

    def lose(self) -> None:
        """Give up a request that the service does not respond to: the run is another worker's."""
        self._is_lost = True

    def close(self) -> None:
        """Send nothing more."""
        self._closed = self._is_lost = True
        self._added.set()

    # ---- the sending ----

    def _send_forever(self) -> None:
        while True:
            self._added.wait()
            self._added.clear()
            if self._closed:
                return
            try:
                self._send("append", {})
            except RunStopped:
                return
            except Refused as error:
                log.error("the events of run %s were refused: %s", self._claim["run_id"], error)
                self._stop("limit")
                return
            time.sleep(GATHER_SECONDS)

    def _send(self, verb: str, fields: Mapping[str, Any]) -> None:
        with self._sending:
            self._send_all(verb, fields)

    def _send_all(self, verb: str, fields: Mapping[str, Any]) -> None:
        if self._broken is not None and verb not in ("fail", "release"):
            # Another thread had sent what this one waits for: it is not stored.
            raise RunStopped(self._broken)
        is_last = False
        while not is_last:
            batch, is_last = self._take()
            try:
                if is_last and verb != "append":
                    body = self._body(batch, fields)
                    if batch and len(encoded(body)) > MAX_END_BYTES:
                        # A long answer is the last turn's text, too. Either alone fits, except for
                        # services of the release before if much of it is escaped, or is `output`.
                        self._post("append", self._body(batch, {}))
                        body = {**body, "seq": batch[-1][0] + 1, "events": []}
                        batch = []
                    self._post(verb, body)
                elif batch or fields:
                    self._post("append", self._body(batch, fields if is_last else {}))
            except RunStopped as stopped:
                self._broken = stopped.reason
                raise
            except Exception:  # also one that has kept the request from being made
                self._drop_from(batch)
                raise

    def _drop_from(self, batch: list[tuple[int, dict[str, Any]]]) -> None:
        """Drop unsendable events and those after them: only the end of the run can follow."""
        if batch:
            with self._lock:
                self._broken = "limit"
                self._ready.clear()
                self._text.clear()
                self._next_seq = batch[0][0]

    def _body(
        self, batch: list[tuple[int, dict[str, Any]]], fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        seq = batch[0][0] if batch else self._next_seq
        return {**self._claim, "seq": seq, "events": [event for _, event in batch], **fields}

    def _take(self) -> tuple[list[tuple[int, dict[str, Any]]], bool]:
        """Take what one request carries; True if it is all there is."""
        with self._lock:
            self._number_text()
            count = size = 0
            for _, event in self._ready[:MAX_EVENTS]:
                size += len(json.dumps(event))
                if count and size > MAX_BATCH_BYTES:
                    break
                count += 1
            batch, self._ready = self._ready[:count], self._ready[count:]
            return batch, not self._ready

    def _post(self, verb: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a request until the service has responded to it: a repeated one has no effect."""
        pause = FIRST_PAUSE_SECONDS
        fields = {"status", "cancel_requested"}
        if verb == "reserve":
            fields.add("is_reserved")
        while True:
            if self._is_lost:
                raise RunStopped("lost")
            try:
                written = self._service.post(verb, body, fields=fields)
                break
            except Unreachable as error:
                log.warning("%s of run %s: %s", verb, body["run_id"], error)
                time.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
            except Refused as error:
                unknown = {name for name in NEW_FIELDS if name in body and name in error.details}
                if unknown:
                    # The process that responds is of the release before, which has none.
                    body = {name: value for name, value in body.items() if name not in unknown}
                    continue
                if error.code in OUTDATED:
                    self._stop("lost")
                    raise RunStopped("lost") from None
                if "approval_of" in error.details:
                    raise Refused(error.status, error.code, NO_APPROVALS) from error
                raise
        if verb in ("append", "reserve") and written["status"] != "running":
            # Completed by the service: the run has landed at a limit.
            is_over = written["status"] in ("failed", "completed")
            reason: StopReason = "limit" if is_over else "lost"
            self._stop(reason)
            raise RunStopped(reason)
        if written["cancel_requested"]:
            self._stop("cancelled")
        return written

    # ---- under the lock ----

    def _number_text(self) -> None:
        text = "".join(self._text)
        self._text.clear()
        for start in range(0, len(text), MAX_TEXT_CHARACTERS):
            if self._kind is MessageDelta and self._open_seq is None:
                self._open_seq = self._next_seq
            piece = text[start : start + MAX_TEXT_CHARACTERS]
            self._number({"type": self._kind.type, "content": piece})

    def _number(self, event: dict[str, Any]) -> None:
        self._ready.append((self._next_seq, event))
        self._next_seq += 1


def _wire(event: Event) -> dict[str, Any]:
    """Return the event as an agent worker reports it."""
    match event:
        case MessageCompleted(content=content, usage=usage):
            tokens = {name: getattr(usage, name) for name in TOKEN_FIELDS}
            return {"type": event.type, "content": content, "usage": tokens}
        case ToolCallRequested():
            names: tuple[str, ...] = ("tool_call_id", "name", "arguments")
        case ToolResult():
            names = ("tool_call_id", "name", "output", "is_error", "duration_ms")
        case _:
            raise TypeError(f"An agent reports no {event.type}.")
    return {"type": event.type, **{name: getattr(event, name) for name in names}}
