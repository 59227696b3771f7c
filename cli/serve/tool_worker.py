"""A worker of the customer: it fetches calls, executes them side by side and reports results.

Polls and results have a connection each, and heartbeats have two. A tool that blocks its thread, or
the event loop, does not hold up the heartbeats, which are sent from threads of their own.
"""

import asyncio
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from arkloop.cli.client.client import Refused
from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.freezes import Freezes
from arkloop.cli.serve.heartbeats import Heartbeats
from arkloop.cli.serve.pauses import FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS, Pauses
from arkloop.cli.serve.service import Service, Unreachable
from arkloop.cli.serve.serving import stop_on_error
from arkloop.cli.serve.tool_call import ToolCall
from arkloop.shared.events.plain import clean
from arkloop.worker.tools import Tool

log = logging.getLogger(__name__)

WAIT_SECONDS = 30
#: The service counts a lease from the last heartbeat, of which there are three in it.
HEARTBEATS_PER_LEASE = 3
#: How long a function may go on after it was asked to stop, when the worker ends.
STOP_SECONDS = 1.0
#: How long the last poll may take to end.
LAST_POLL_SECONDS = 2.0
#: How often the main thread looks for signals.
SIGNAL_SECONDS = 0.2
#: A body may have 1 MiB.
MAX_BODY_BYTES = 1_000_000
MAX_ERROR_CHARACTERS = 65_536
MAX_IMAGES = 8
_CUT = "\n[cut: the output was too long for one response]"

_TOOLS_UNKNOWN = "tool_workers.tools_unknown"
#: The service would refuse the same result each time, and another one not.
_INVALID_RESULT = (400, 413, 422)


class ToolWorker:
    """Executes calls of a pool until `stop`; `failure` is why it could not go on."""

    def __init__(
        self,
        server: ServerAddress,
        pool: str,
        tools: Mapping[str, Tool],
        *,
        concurrency: int,
        lease_seconds: int,
        grace_seconds: float,
    ) -> None:
        self.id = f"{socket.gethostname()[:40]}-{secrets.token_hex(6)}"
        self.failure: click.ClickException | None = None
        self._tools = tools
        self._lease_seconds, self._grace_seconds = lease_seconds, grace_seconds
        path = f"/tool-workers/{pool}"
        self._polls, self._results = (Service(server, path) for _ in range(2))
        self._reporting = threading.Lock()
        self._changed = threading.Condition()
        # For a third of the lease; a short lease has short pauses.
        self._wait_seconds = min(lease_seconds / HEARTBEATS_PER_LEASE, WAIT_SECONDS)
        max_pause = min(MAX_PAUSE_SECONDS, self._wait_seconds)
        self._heartbeats = Heartbeats(
            server,
            path,
            self._changed,
            work=self._wanted,
            send=self._beat,
            wait_seconds=lambda: self._wait_seconds,
            max_pause_seconds=max_pause,
        )
        self._calls: set[ToolCall] = set()
        self._free = concurrency
        self._stopping = threading.Event()
        self._is_stop_requested = False
        self._freezes = Freezes()
        self._freezes.least_seconds = lease_seconds / HEARTBEATS_PER_LEASE
        self._loop = asyncio.new_event_loop()

    def run(self) -> None:
        """Work until `stop` is called, or the service refuses the key or the tools; then drain."""
        polling, *others = (
            threading.Thread(target=stop_on_error, args=(self, task), name="requests", daemon=True)
            for task in (self._poll, self._run_loop, *self._heartbeats.tasks)
        )
        for thread in (polling, *others):
            thread.start()
        # Again and again: a signal that another thread receives does not wake this one, in which
        # Python would execute its handler.
        while not self._is_stop_requested and not self._stopping.wait(SIGNAL_SECONDS):
            self._freezes.look()
        self._stopping.set()
        deadline = time.monotonic() + self._grace_seconds
        # The service has leased the calls of a response that is on its way.
        self._polls.finish()
        with self._changed:
            self._changed.notify_all()
        for _ in range(round(LAST_POLL_SECONDS / SIGNAL_SECONDS)):
            polling.join(SIGNAL_SECONDS)
            self._freezes.look()
        self._polls.abort()
        self._drain(deadline)
        self._heartbeats.abort()

    def stop(self, *_: object) -> None:
        """Fetch no more calls; may be called by a signal handler."""
        # Not the event: its lock may be that of the code which the handler has interrupted.
        self._is_stop_requested = True

    def _run_loop(self) -> None:
        """Execute coroutines until the process ends; a task that exits ends its own call alone."""
        while True:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):  # asyncio raises these here, too
                log.exception("a task of a tool has exited: the event loop continues")

    # ---- polls ----

    def _poll(self) -> None:
        tools: dict[str, Any] = {"tools": [_definition(tool) for tool in self._tools.values()]}
        known: dict[str, Any] = tools
        pauses = Pauses(self._stopping)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._free > 0 or self._stopping.is_set())
                free = self._free
            if self._stopping.is_set():
                return
            body = {
                "worker_id": self.id,
                "max_calls": min(free, 64),
                "lease_seconds": self._lease_seconds,
                "wait_seconds": WAIT_SECONDS,
                **known,
            }
            began = self._freezes.now()
            try:
                polled = self._polls.post(
                    "poll",
                    body,
                    fields=("tools_hash", "calls", "cancelled"),
                    wait_seconds=WAIT_SECONDS,
                )
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused) and error.code == _TOOLS_UNKNOWN:
                    known = tools
                    continue
                if (failure := pauses.failure(error)) is not None:
                    self.failure = failure
                    self._stopping.set()
                    return
                pauses.after(error)
                continue
            pauses.end()
            known = {"tools_hash": polled["tools_hash"]}
            for call in self._held(polled["calls"], began):
                self._start(call)
            self._cancel(polled["cancelled"])

    def _held(
        self, calls: Sequence[Mapping[str, Any]], began: float
    ) -> Sequence[Mapping[str, Any]]:
        """Return the calls of a poll that began then, without those that were taken from a frozen
        worker meanwhile, or cancelled.
        """
        pauses = Pauses(self._stopping)
        while calls and self._freezes.since(began):
            asked_at = self._freezes.now()
            body = {
                "worker_id": self.id,
                "calls": [{"call_id": one["call_id"], "fence": one["fence"]} for one in calls],
                "lease_seconds": self._lease_seconds,
                "wait_seconds": 0,
            }
            try:
                news = self._polls.post("heartbeat", body, fields=("cancelled", "lost"))
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused) or self._stopping.is_set():
                    log.warning("calls are given up after a freeze: %s", error)
                    return ()
                pauses.after(error)
                continue
            began = asked_at
            gone = {*news["cancelled"], *news["lost"]}
            calls = [one for one in calls if one["call_id"] not in gone]
        return calls

    def _start(self, fetched: Mapping[str, Any]) -> None:
        call = ToolCall(self._tools[fetched["tool"]], fetched, self._loop)
        # An earlier execution of this call is lost: the service would not have queued it again.
        self._cancel([call.id])
        with self._changed:
            self._free -= 1
            self._calls.add(call)
            self._changed.notify_all()
        try:
            call.start(self._ended)
        except RuntimeError:  # no thread is left for it
            self._forget(call)
            raise

    def _forget(self, call: ToolCall) -> None:
        with self._changed:
            self._calls.discard(call)
            self._free += 1
            self._changed.notify_all()

    def _cancel(self, call_ids: list[str]) -> None:
        """Stop all executions of these calls."""
        with self._changed:
            concerned = [call for call in self._calls if call.id in call_ids]
        for call in concerned:
            call.cancel()

    # ---- heartbeats ----

    def _beat(self, service: Service, calls: Sequence[ToolCall]) -> None:
        """Extend the leases of the calls, and learn which are to be stopped."""
        named = {call.id: call for call in calls}
        body = {
            "worker_id": self.id,
            "calls": [call.name for call in named.values()],
            "lease_seconds": self._lease_seconds,
            "wait_seconds": int(self._wait_seconds),
        }
        began = time.monotonic()
        news = service.post(
            "heartbeat",
            body,
            fields=("cancelled", "lost"),
            wait_seconds=self._wait_seconds,
            lease_seconds=self._lease_seconds,
        )
        for call_id in news["cancelled"] + news["lost"]:
            # Only this execution was asked about, and not one that was fetched meanwhile.
            named[call_id].cancel()
        if not news["cancelled"] and not news["lost"]:
            # A server that is being stopped responds at once.
            time.sleep(max(0.0, min(0.1, began + 0.1 - time.monotonic())))

    def _wanted(self) -> list[ToolCall]:
        return [call for call in self._calls if not call.is_unwanted]

    # ---- results ----

    def _ended(self, call: ToolCall, verb: str, result: Mapping[str, Any]) -> None:
        """Report what came of a call, in the thread that executed it."""
        try:
            if not call.is_abandoned and not self._report(call, verb, result):
                self._report(call, "fail", {"error": "The tool's result cannot be stored."})
        finally:
            self._forget(call)

    def _report(self, call: ToolCall, verb: str, result: Mapping[str, Any]) -> bool:
        """Send the result, again and again while the service is away and the call is wanted.

        Returns False if the service accepts no such result; the worker's log has why.
        """
        try:
            body = _fitting({"worker_id": self.id, **call.name}, result)
        except Exception:
            log.exception("the result of call %s cannot be sent", call.id)
            return False
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                with self._reporting:
                    news = self._results.post(verb, body, fields=["cancelled"])
                self._cancel(news["cancelled"])
                return True
            except Refused as error:
                log.warning("the result of call %s was refused: %s", call.id, error.message)
                return error.status not in _INVALID_RESULT
            except Unreachable as error:
                if call.is_unwanted:
                    return True
                log.warning("reporting call %s failed: %s", call.id, error)
                time.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)

    # ---- the end ----

    def _drain(self, deadline: float) -> None:
        """Let calls end; those that do not are asked to stop, and the service takes them back."""
        self._wait_for_calls(deadline)
        with self._changed:
            left = list(self._calls)
        for call in left:
            log.warning("call %s did not end within %g s", call.id, self._grace_seconds)
            call.is_abandoned = True
            call.cancel()
        self._wait_for_calls(time.monotonic() + STOP_SECONDS)

    def _wait_for_calls(self, deadline: float) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: not self._calls, timeout=max(0.0, deadline - time.monotonic())
            )


def _definition(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.spec.name,
        "description": tool.spec.description,
        "parameters": tool.spec.parameters,
        "idempotent": tool.idempotent,
        "timeout_seconds": tool.timeout_seconds,
    }


def _fitting(body: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request's body, as the service accepts it; output, error and images are cut to
    fit.
    """
    name = "output" if "output" in result else "error"
    text = clean(result[name])
    fitting = {**body, **result, name: text}
    if name == "error" and len(text) > MAX_ERROR_CHARACTERS:
        text = text[: MAX_ERROR_CHARACTERS - len(_CUT)]
        fitting[name] = text + _CUT
    if len(fitting.get("images", ())) > MAX_IMAGES:
        fitting["images"] = fitting["images"][:MAX_IMAGES]
        fitting[name] = text + _CUT
    while _size(fitting) > MAX_BODY_BYTES and (text or fitting.get("images")):
        if _size(text) > MAX_BODY_BYTES // 2:
            text = text[: len(text) * 2 // 3]
        else:
            fitting["images"] = fitting["images"][:-1]
        fitting[name] = text + _CUT
    return fitting


def _size(value: Any) -> int:
    """Return the bytes of the value as the service gets it: text is not escaped."""
    return len(json.dumps(value, ensure_ascii=False).encode())
