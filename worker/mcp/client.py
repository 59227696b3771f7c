"""The worker's end: has a sidecar for each org that needs one, and asks it from any thread."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol
from uuid import UUID

from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.errors import Unavailable
from arkloop.shared.security.program_user import ProgramUser
from arkloop.worker.contract.attachments import ToolOutput
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.input_requests import InputRequired, Replies
from arkloop.worker.mcp import AuthorizationRequired, Cancelled, McpFailed, ToolChanged
from arkloop.worker.mcp.descriptions import Description
from arkloop.worker.mcp.held_calls import HeldCalls
from arkloop.worker.mcp.org_sidecar import CANCEL_SECONDS, Forker, OrgSidecar, Pending
from arkloop.worker.mcp.server import Server

CALL_SECONDS = 60.0
#: Of a call in all; each report of its progress gives it another `CALL_SECONDS` within this time.
MAX_CALL_SECONDS = 600.0
TOOLS_SECONDS = 20.0
#: The sidecar keeps the time; if it does not answer so much later, it hangs, and is given up.
GRACE_SECONDS = 8.0
#: Orgs whose sidecars one worker process has at a time.
MAX_ORGS = 64
#: A sidecar that was idle for this time is ended.
IDLE_SECONDS = 300.0
_LOOK_SECONDS = 10.0
#: A sidecar that lived for less than this is restarted only after a pause, which doubles.
SHORT_LIFE_SECONDS = 10.0
MAX_PAUSE_SECONDS = 30.0
_SHUTTING_DOWN = "The worker is shutting down."


class ChangedTools(ToolChanged):
    """`tools` is what the server has now."""

    def __init__(self, message: str, tools: Sequence[Description]) -> None:
        super().__init__(message)
        self.tools = tools


class Access(Protocol):
    """The access of a server's owner, which the sidecar is given and gives back changed."""

    def fields(self) -> Mapping[str, Any]:
        """Return `{grant, client, answered}`; see `EndUserOAuth.take`."""

    def keep(self, grant: Mapping[str, Any]) -> None:
        """Store the grant that a request has led to."""


@dataclass(slots=True)
class _Restarts:
    """The pause before an org's next sidecar, or before the next process that forks them."""

    pause: float = 0.0
    not_before: float = 0.0

    def schedule(self, lived_seconds: float) -> None:
        if lived_seconds > SHORT_LIFE_SECONDS:
            self.pause = 0.0
        self.not_before = time.monotonic() + self.pause
        self.pause = min(MAX_PAUSE_SECONDS, max(0.5, self.pause * 2))

    def check(self) -> None:
        if time.monotonic() < self.not_before:
            raise McpFailed("The MCP client has crashed and is restarting.")


class McpClient:
    """The client of a worker process; every method may be called from many threads at once."""

    def __init__(
        self,
        *,
        allowed_networks: Sequence[str] = (),
        stdio: bool = False,
        run_as: ProgramUser | None = None,
        core_dumps: bool = False,
        max_orgs: int = MAX_ORGS,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._rules = json.dumps(
            {
                "allowed_networks": list(allowed_networks),
                "stdio": stdio,
                "run_as": run_as and asdict(run_as),
                "core_dumps": core_dumps,
            }
        )
        self._max_orgs = max_orgs
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        #: Requests with access, until what they have led to is stored.
        self._with_access: set[Pending] = set()
        self._settled = threading.Condition(self._lock)
        self._is_settling = False
        self.held = HeldCalls()
        self._forker: Forker | None = None
        self._sidecars: dict[UUID, OrgSidecar] = {}
        self._restarts: dict[UUID | None, _Restarts] = {}  # None: of the forker
        self._closed = threading.Event()
        self._idle_loop: BackgroundLoop | None = None

    def tools(
        self,
        server: Server,
        *,
        access: Access | None = None,
        context: ToolContext | None = None,
        seconds: float = TOOLS_SECONDS,
    ) -> list[Description]:
        """List the server's tools as they are now.

        Raises:
            McpFailed: the server did not tell.
            AuthorizationRequired: somebody has to authorize access first.
        """
        answer = self._ask(server, {"do": "tools"}, context, seconds, access)
        return [Description(**fields) for fields in answer["tools"]]

    def call(
        self,
        server: Server,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        pinned: str,
        meta: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        replies: Replies | None = None,
        on_progress: Callable[[Mapping[str, Any]], None] | None = None,
        access: Access | None = None,
        context: ToolContext | None = None,
        seconds: float = CALL_SECONDS,
        max_seconds: float = MAX_CALL_SECONDS,
    ) -> str | ToolOutput:
        """Call a tool that was described, when it was approved, as the hash `pinned` says.

        The call carries `meta`. `on_progress` gets `{progress, total, message}` of the server's
        newest notification, a few times per second; each notification extends the call's time.
        With `replies` the call continues one that has ended with `InputRequired`, or that is held
        in this process for the run `run_id`.
        As soon as the run has to stop the call is cancelled, at the server too.

        Raises:
            McpFailed: the tool or the server failed; nobody knows what the tool has done.
            AuthorizationRequired: it was not called, somebody has to authorize access first.
            ChangedTools: it was not called, its description is another one now.
            InputRequired: it has ended until people have replied.
        """
        request: dict[str, Any] = {
            "do": "call",
            "tool": tool,
            "arguments": arguments,
            "pinned": pinned,
            "meta": dict(meta or {}),
            "replies": replies and {"responses": replies.responses, "state": replies.state},
            "max_seconds": max_seconds,
        }
        if replies is not None and replies.held is not None:
            (reply,) = replies.responses.values()
            request |= {"do": "continue", "held": replies.held, "reply": reply}
        answer = self._ask(server, request, context, seconds, access, on_progress, run_id)
        if (required := answer.get("required")) is not None:
            raise InputRequired(required["asked"], required["state"], required.get("held"))
        text: str = answer["text"]
        return ToolOutput(text, answer["images"]) if answer["images"] else text

    def settle(self) -> None:
        """Cancel requests with access; return once the tokens on their way to them are stored.

        They are not waited for beyond `CANCEL_SECONDS`: later ones are lost. Further requests with
        access are refused, as they would send a token that is spent.
        """
        with self._settled:
            self._is_settling = True
            for pending in self._with_access:
                if not pending.done.is_set():
                    pending.resolve({"failed": _SHUTTING_DOWN, "kind": "cancelled"})
            self._settled.wait_for(lambda: not self._with_access, CANCEL_SECONDS)

    def close(self) -> None:
        """End all sidecars; what is being asked fails, and so does all that is asked later."""
        with self._lock:
            self._closed.set()
        self.settle()
        with self._lock:
            sidecars, self._sidecars = list(self._sidecars.values()), {}
            forker, self._forker = self._forker, None
        for sidecar in sidecars:
            sidecar.end()
        if forker is not None:
            forker.close()

    def sidecar_pid(self, org_id: UUID) -> int | None:
        """Return the process id of the org's sidecar, None if none has responded yet."""
        sidecar = self._sidecars.get(org_id)
        return None if sidecar is None or sidecar.is_gone else sidecar.pid

    def _ask(
        self,
        server: Server,
        request: Mapping[str, Any],
        context: ToolContext | None,
        seconds: float,
        access: Access | None,
        on_progress: Callable[[Mapping[str, Any]], None] | None = None,
        run_id: str | None = None,
    ) -> Mapping[str, Any]:
        pending = Pending(on_progress)
        given = None if access is None else access.fields()

        kept: Mapping[str, Any] | None = None

        def keep() -> None:
            nonlocal kept
            grant = pending.grant
            if access is not None and grant is not None and grant is not kept:
                access.keep(grant)
                kept = grant

        def keep_now() -> None:
            # Others that use what it replaces would fail; without the database it is kept later.
            with contextlib.suppress(Unavailable):
                keep()

        with contextlib.ExitStack() as stack:
            stack.enter_context(self._noting(pending, access))
            stack.callback(keep)  # also where the run has to stop
            if context is not None:
                cancelled = {"failed": "The call was cancelled.", "kind": "cancelled"}
                stack.enter_context(context.aborting(lambda: pending.resolve(cancelled)))
            sidecar = stack.enter_context(self._using(server.org_id))
            server_fields = server.to_json()
            fields = {**request, "server": server_fields, "access": given, "seconds": seconds}
            with sidecar.asking(fields, pending):
                if not pending.wait(seconds + GRACE_SECONDS, keep_now):
                    sidecar.end()
            self._note_held(sidecar, request.get("held"), pending.answer, run_id)
        return _checked(pending.answer)

    @contextlib.contextmanager
    def _noting(self, pending: Pending, access: Access | None) -> Iterator[None]:
        """Let `settle` know of a request with access. Raises: Cancelled: it has begun."""
        if access is not None:
            with self._lock:
                if self._is_settling:
                    raise Cancelled(_SHUTTING_DOWN)
                self._with_access.add(pending)
        try:
            yield
        finally:
            with self._settled:
                self._with_access.discard(pending)
                self._settled.notify_all()

    def _note_held(
        self,
        sidecar: OrgSidecar,
        continued: str | None,
        answer: Mapping[str, Any] | None,
        run_id: str | None,
    ) -> None:
        """Note which call waits for a person now, in place of the one that was continued."""
        if continued is not None:
            self.held.remove(continued)
            if (answer or {}).get("kind") == "cancelled":
                sidecar.release(continued)  # it may not have been asked to continue
        token = ((answer or {}).get("required") or {}).get("held")
        if token is None:
            return
        if run_id is None:
            sidecar.release(token)
        else:
            self.held.add(token, sidecar, run_id)

    @contextlib.contextmanager
    def _using(self, org_id: UUID) -> Iterator[OrgSidecar]:
        """Keep the org's sidecar, started now if it has none, from being ended as idle."""
        with self._lock:
            sidecar = self._sidecar(org_id)
            sidecar.users += 1
        try:
            yield sidecar
        finally:
            with self._lock:
                sidecar.users -= 1
                sidecar.used_at = time.monotonic()

    def _sidecar(self, org_id: UUID) -> OrgSidecar:
        if self._closed.is_set():
            raise Cancelled(_SHUTTING_DOWN)
        self._forget_gone()
        sidecar = self._sidecars.get(org_id)
        if sidecar is None:
            self._check(org_id)
            if len(self._sidecars) >= self._max_orgs:
                self._make_room()
            self._sidecars[org_id] = sidecar = self._start()
        return sidecar

    def _forget_gone(self) -> None:
        for org_id, sidecar in list(self._sidecars.items()):
            if sidecar.is_gone:
                del self._sidecars[org_id]
                self._schedule(org_id, sidecar.lived_seconds)

    def _make_room(self) -> None:
        unused = [(one.used_at, key) for key, one in self._sidecars.items() if not one.users]
        if not unused:
            raise McpFailed(
                f"{self._max_orgs} organizations are using MCP servers on this worker;"
                " try again later."
            )
        self._sidecars.pop(min(unused)[1]).end()

    def _start(self) -> OrgSidecar:
        if self._forker is not None and self._forker.is_gone:
            self._schedule(None, self._forker.lived_seconds)
            self._forker.close()
            self._forker = None
        self._check(None)
        try:
            if self._forker is None:
                self._forker = Forker(self._rules)
                if self._idle_loop is None:
                    self._idle_loop = BackgroundLoop(
                        "ending idle MCP processes",
                        self._end_idle,
                        seconds=min(_LOOK_SECONDS, self._idle_seconds),
                        stopped=self._closed,
                    )
            return self._forker.fork()
        except OSError as error:
            logging.getLogger(__name__).error("starting an MCP sidecar failed: %s", error)
            raise McpFailed("Starting the MCP client failed.") from None

    def _schedule(self, key: UUID | None, lived_seconds: float) -> None:
        self._restarts.setdefault(key, _Restarts()).schedule(lived_seconds)

    def _check(self, key: UUID | None) -> None:
        if key in self._restarts:
            self._restarts[key].check()

    def _end_idle(self) -> None:
        with self._lock:
            self._forget_gone()
            late = time.monotonic() - self._idle_seconds
            for org_id, sidecar in list(self._sidecars.items()):
                if not sidecar.users and sidecar.used_at < late:
                    self._sidecars.pop(org_id).end()
            over = time.monotonic() - MAX_PAUSE_SECONDS
            for key, restarts in list(self._restarts.items()):
                if restarts.not_before < over:
                    del self._restarts[key]


def _checked(answer: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if answer is None:
        raise McpFailed("The MCP client crashed; the outcome of the call is unknown.")
    match answer.get("kind"):
        case None:
            return answer
        case "changed":
            tools = [Description(**fields) for fields in answer["tools"]]
            raise ChangedTools(answer["failed"], tools)
        case "authorization":
            raise AuthorizationRequired(answer["made"])
        case "cancelled":
            raise Cancelled(answer["failed"])
    raise McpFailed(answer["failed"], cause=answer.get("cause"))
