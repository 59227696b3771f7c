"""The sidecar's sessions: one for each server, kept while it is in use."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import mcp_types as types
from mcp import Client, MCPError
from mcp.client.session import ClientRequestContext
from mcp.client.streamable_http import streamable_http_client
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    URL_ELICITATION_REQUIRED,
)
from pydantic import TypeAdapter, ValidationError

from arkloop.shared.security import egress
from arkloop.shared.security.program_user import ProgramUser
from arkloop.worker.mcp import (
    MAY_BE_DONE,
    McpFailed,
    SessionLost,
    ToolChanged,
    elicitations,
    failed_requests,
    failure_texts,
)
from arkloop.worker.mcp.bounded_messages import MAX_BYTES, REQUEST_ID
from arkloop.worker.mcp.checked_http import CheckedClient
from arkloop.worker.mcp.descriptions import Description
from arkloop.worker.mcp.failed_requests import LOST, NO_HOST, NOT_AUTHORIZED, NOT_CONNECTED
from arkloop.worker.mcp.oauth import EndUserOAuth
from arkloop.worker.mcp.open_calls import MAX_ASKING, OpenCall
from arkloop.worker.mcp.results import text_of
from arkloop.worker.mcp.server import Server
from arkloop.worker.mcp.stdio import EXITED, program
from arkloop.worker.mcp.tool_lists import by_name, list_tools

#: For the connection, the handshake and the first list of tools.
CONNECT_SECONDS = 20.0
CLOSE_SECONDS = 5.0
#: A session's list of tools is valid for this long, unless the server says that it has changed,
#: or it has to be connected to anew.
LIST_SECONDS = 30.0
#: Calls of a session that are in progress; over HTTP each has a connection. Further ones wait.
MAX_CALLS = 128

SESSION_LOST = "The server lost the session."
REPLY_LOST = "The reply to what the server had asked could not be delivered."

_Answer: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that the operator has set."""

    policy: egress.Policy
    stdio: bool
    run_as: ProgramUser | None = None  # None: programs run as the worker's own user


class Session:
    """A connection to one server, which a task of its own holds until `close`."""

    def __init__(self, server: Server, rules: Rules) -> None:
        self.server = server
        self.users = 0
        self.used_at = time.monotonic()
        self.is_over = False  # it is not for new calls
        self._rules = rules
        self._reason: str | None = None
        self._closing = asyncio.Event()
        self._ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._http: CheckedClient | None = None
        self.oauth = EndUserOAuth(server) if server.oauth is not None else None
        self._tools: dict[str, Description] = {}
        self._listed_at = float("-inf")
        self._connections_then = 0
        self._has_changed = False
        self._is_in_doubt = False  # a status may have said that the session is lost; no list since
        self._listing = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_CALLS)
        self._calls: dict[str, OpenCall] = {}  # in progress, by the ids of their requests
        #: By the ids of what the server has asked during them.
        self._asked: dict[types.RequestId, OpenCall] = {}
        self._has_given_up = False  # a call that the server may still work on
        self._host = asyncio.create_task(self._hold())

    async def tools(self, *, fresh: bool = False) -> list[Description]:
        """List the server's tools in its order. Raises: McpFailed."""
        async with self._failing():
            client = await asyncio.shield(self._ready)
            async with self._listing:
                is_old = time.monotonic() - self._listed_at > LIST_SECONDS
                if fresh or is_old or self._has_changed or self._may_be_another():
                    self._has_changed, self._listed_at = False, float("-inf")
                    self._tools = by_name(await list_tools(client))
                    self._listed_at = time.monotonic()
                    self._is_in_doubt = False
                    if self._http is not None:
                        self._connections_then = self._http.connections_made
                    if self.oauth is not None:
                        self.oauth.has_worked = True
        return list(self._tools.values())

    def _may_be_another(self) -> bool:
        """Return whether a call might reach another server than the one that was listed.

        Not every session ends with its server: the newer protocol has none, over HTTP, and what
        was restarted, or stands behind a balancer, answers like the one before it.
        """
        http = self._http
        return http is not None and not (
            http.is_connected and http.connections_made == self._connections_then
        )

    async def call(
        self,
        tool: str,
        arguments: dict[str, Any],
        pinned: str,
        meta: Mapping[str, Any],
        call: OpenCall,
        replies: Mapping[str, Any] | None,
    ) -> types.CallToolResult | types.InputRequiredResult:
        """Call a tool if the server still describes it as it did under the hash `pinned`.

        `meta` is sent with the call, and `replies` to what it asked for before; `call` gets what
        the server reports of it, and asks meanwhile.

        Raises:
            McpFailed: the tool failed, or the server did.
            SessionLost: it was not called.
            ToolChanged: it was not called.
        """
        async with self._slots:  # the check comes after the wait: the tool may change meanwhile
            described = {found.name: found for found in await self.tools()}.get(tool)
            if described is None:
                raise ToolChanged(f"The server no longer offers the tool {tool!r}.")
            if described.hash != pinned:
                raise ToolChanged(f"The tool {tool!r} has changed; an admin must approve it again.")
            if described.problem is not None:
                raise ToolChanged(f"The tool {tool!r} can no longer be called; see its `problem`.")
            call_id = secrets.token_hex(8)
            request = types.CallToolRequest(
                params=types.CallToolRequestParams(
                    name=tool,
                    arguments=arguments,
                    **elicitations.fields_of(replies),
                    _meta=cast(types.RequestParamsMeta, {**meta, REQUEST_ID: call_id}),
                )
            )
            async with self._failing(call_id):
                client = await asyncio.shield(self._ready)
                self._calls[call_id] = call
                try:
                    # Not `call_tool`: it checks the result against a schema of the server's, whose
                    # patterns may take for ever.
                    result = await client.session.send_request(
                        request, _Answer, progress_callback=call.progress.report
                    )
                except asyncio.CancelledError:
                    self._has_given_up = True
                    raise
                finally:
                    del self._calls[call_id]
                    self._asked = {id_: one for id_, one in self._asked.items() if one is not call}
        if isinstance(result, types.CallToolResult) and result.is_error:
            raise McpFailed(text_of(result) or "The tool failed without an error message.")
        return result

    def retire(self, reason: str) -> None:
        """Take no new calls; those that are being made may still succeed."""
        self.is_over = True
        self._reason = self._reason or reason

    async def close(self) -> None:
        """End the connection, and with it whatever is still being asked.

        A server that does not take its end within `CLOSE_SECONDS` is left without one.
        """
        self.retire("The session was closed.")
        self._closing.set()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._host, CLOSE_SECONDS)

    def _ended(self, reason: str) -> None:
        self.retire(reason)
        self._closing.set()

    def _problem_of(self, call_id: str | None) -> McpFailed | None:
        return None if self.oauth is None else self.oauth.problem_of(call_id)

    async def _hold(self) -> None:
        problem: McpFailed | None = None
        cause: str | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(CONNECT_SECONDS):
                    client = await self._connected(stack)
                self._ready.set_result(client)
                await self._closing.wait()
        except Exception as error:
            problem = self._problem_of(None)
            self.retire(failure_texts.of_connection(problem or error, self._http))
            cause = failure_texts.cause_of_connection(error)
        finally:
            self.retire(LOST)
            if not self._ready.done():
                self._ready.set_exception(problem or McpFailed(self._reason, cause=cause))
                self._ready.exception()  # nobody may be waiting for it

    async def _connected(self, stack: contextlib.AsyncExitStack) -> Client:
        """Connect by the newest protocol that the server knows.

        Some programs, such as those of the Rust SDK 1.x, end at a first message that is not
        `initialize`. One that ends during the handshake is started once more, and gets that first.
        """
        exits: list[str] = []
        is_connected = False

        def ended(reason: str) -> None:
            if is_connected or reason != EXITED:
                self._ended(reason)
            else:
                exits.append(reason)

        try:
            client = await self._connected_by("auto", stack, ended)
        except Exception:
            if not exits:
                raise
            return await self._connected_by("legacy", stack, self._ended)
        is_connected = True
        if exits:
            self._ended(EXITED)
        return client

    async def _connected_by(
        self, mode: str, stack: contextlib.AsyncExitStack, ended: Callable[[str], None]
    ) -> Client:
        return await stack.enter_async_context(
            Client(
                await self._transport(stack, ended),
                mode=mode,
                client_info=types.Implementation(name="arkloop", version="1"),
                message_handler=self._on_message,
                elicitation_callback=self._on_elicitation,
                cache=None,
            )
        )

    async def _transport(
        self, stack: contextlib.AsyncExitStack, ended: Callable[[str], None]
    ) -> Any:
        if self.server.url is None:
            if not self._rules.stdio:
                raise McpFailed("This installation does not start programs as MCP servers.")
            return program(self.server.command, ended, self._rules.run_as)
        url = egress.check_url(self.server.url, self._rules.policy).text
        self._http = await stack.enter_async_context(
            CheckedClient(self.server.headers, self._rules.policy, self.oauth, self._on_reply)
        )
        # It counts each byte beyond ASCII twice, as `EVENT_ENCODING` is decoded.
        return streamable_http_client(url, http_client=self._http, max_sse_event_size=2 * MAX_BYTES)

    async def _on_message(self, message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._has_changed = True

    async def _on_elicitation(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        """Ask a person on behalf of a call in progress.

        A call over HTTP has a stream of its own, by which it is known. Outside of one, and over
        stdio, nothing says which call a request is about: it must be the only one there is, and no
        other may have been given up that the server might still work on.
        """
        call_id = None if self._http is None else (context.meta or {}).get(REQUEST_ID)
        call = None
        if call_id is not None:
            call = self._calls.get(str(call_id))
        elif self._has_given_up:
            self.retire("The server may still work on a cancelled call.")  # the next one may ask
        elif len(self._calls) == 1:
            (call,) = self._calls.values()
        if call is None:
            why = "The client cannot tell which call this request is about."
            return types.ErrorData(code=INVALID_REQUEST, message=why)
        self._asked[context.request_id] = call
        if sum(one.is_asking for one in self._calls.values()) >= MAX_ASKING:
            why = "Too many calls of this session wait for people."
            return types.ErrorData(code=INVALID_REQUEST, message=why)
        return await call.ask(params)

    def _on_reply(self, asked_id: types.RequestId, why: str | None) -> None:
        """Fail the call that has no reply to what it has asked: the server would wait for it."""
        if (call := self._asked.get(asked_id)) is None:
            return
        call.has_delivered.set()
        if why is not None:
            call.progress.give_up(f"{REPLY_LOST} {why}{MAY_BE_DONE}")

    @contextlib.asynccontextmanager
    async def _failing(self, call_id: str | None = None) -> AsyncIterator[None]:
        """Turn the SDK's errors into `McpFailed`."""
        try:
            yield
        except MCPError as error:
            problem = self._problem_of(call_id)
            may_be_done = failed_requests.may_be_done(error.data)
            if may_be_done is not None and error.message == NOT_AUTHORIZED:
                problem = McpFailed(NOT_AUTHORIZED, cause=error.data["cause"])
            if problem is not None:
                had_access = self.oauth is not None and self.oauth.had_access
                if had_access and await self._is_lost(call_id):
                    self.retire(SESSION_LOST)
                    raise SessionLost(SESSION_LOST, problem) from None
                raise problem from None
            if may_be_done is not None:
                is_unknown = call_id is not None and may_be_done
                raise McpFailed(
                    f"{error.message}{MAY_BE_DONE if is_unknown else ''}",
                    cause=error.data["cause"],
                ) from None
            if error.code == URL_ELICITATION_REQUIRED and call_id is not None:
                raise elicitations.pages_required(error.data) from None
            # Servers use the same code for errors of their own.
            if error.code == CONNECTION_CLOSED and error.message == "Connection closed":
                # The reason is known to the task that holds the connection, in a moment.
                self._closing.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self._host), 2 * CONNECT_SECONDS)
                is_unknown = call_id is not None and self._reason not in (NOT_CONNECTED, NO_HOST)
                raise McpFailed(f"{self._reason}{MAY_BE_DONE if is_unknown else ''}") from None
            # With these it has read the request, whatever the status.
            is_read = error.code in (INVALID_PARAMS, METHOD_NOT_FOUND)
            is_read &= error.message != failure_texts.NOT_FOUND
            text = failure_texts.of_error(error, self._http)
            is_rejected = self._http is not None and self._http.has_rejected(call_id)
            if not is_read and (is_rejected or await self._is_lost(call_id)):
                self.retire(SESSION_LOST)
                raise SessionLost(text) from None
            is_unknown = call_id is not None and text == LOST
            raise McpFailed(f"{text}{MAY_BE_DONE if is_unknown else ''}") from None
        except (ValidationError, ValueError):
            raise McpFailed("The server's response is not valid MCP.") from None
        finally:
            if self._http is not None and call_id is not None:
                self._http.forget(call_id)

    async def _is_lost(self, call_id: str | None) -> bool:
        """Return whether a status that may have another reason means that the session is lost.

        The list of tools decides, which changes nothing.
        """
        status = None if self._http is None else self._http.doubted_with(call_id)
        if status is None:
            return False
        was_in_doubt, self._is_in_doubt = self._is_in_doubt, True
        if call_id is None:
            return was_in_doubt or status < 500
        self._has_changed = True  # so that the list is requested before the next call at the latest
        if status >= 500:
            return False  # the server may have carried out the call
        try:
            await self.tools()
        except McpFailed as failed:
            return isinstance(failed, SessionLost)
        return False
