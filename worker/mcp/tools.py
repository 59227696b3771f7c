"""The approved tools of MCP servers, as tools of a run."""

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from arkloop.shared.catalog import mcp_access, mcp_configs
from arkloop.shared.catalog.personas import BUILTIN_TOOLS
from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import reason_of
from arkloop.shared.runs import queries
from arkloop.shared.storage.connections import Connections
from arkloop.worker.contract.attachments import ToolOutput
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.mcp import (
    CALL_META,
    MAY_BE_DONE,
    TRACEPARENT,
    AuthorizationRequired,
    Cancelled,
    McpFailed,
    access,
    discovery,
)
from arkloop.worker.mcp.access import OwnersAccess
from arkloop.worker.mcp.client import MAX_CALL_SECONDS, ChangedTools, McpClient
from arkloop.worker.mcp.server import Server
from arkloop.worker.tools import CallInfo, Tool, ToolFailed

log = logging.getLogger(__name__)

#: Of one run, of all its servers.
MAX_TOOLS = 512
MAX_NAME = 64
#: Connecting, listing the tools and the call itself have limits of their own, which end first.
TIMEOUT_SECONDS = MAX_CALL_SECONDS + 120.0
_DIGEST = 8


@dataclass(frozen=True, slots=True)
class McpTools:
    """`tools` by the names that the model reads; `also_named`: what else means each of them.

    A name grows a prefix when another server gets a tool of the same name. A list of tools
    that require approval must not lose one by that: it may name a tool in either form.
    """

    tools: Mapping[str, Tool] = field(default_factory=dict)
    also_named: Mapping[str, frozenset[str]] = field(default_factory=dict)


def tools_of(
    connections: Connections,
    client: McpClient,
    org_id: UUID,
    names: Collection[str],
    *,
    reserved_names: Collection[str],
    context: ToolContext,
) -> McpTools:
    """Return the tools that these servers offer; `reserved_names` belong to other tools.

    Servers whose tools were never listed are asked now, side by side. One that was
    asked a while ago is asked beside the run, and so is one that did not respond when it was asked
    last: until it does, runs do without. Calls say if something has changed meanwhile. Beyond
    `MAX_TOOLS` the last are left out, in the order of the servers' names and their own.

    Raises:
        Unavailable: Postgres is out of reach.
        StopRun, LeaseLost: by `context`.
    """
    if not names:
        return McpTools()
    with connections.reading() as sql:
        rows = mcp_configs.of_names(sql, org_id, names)
    if missing := set(names) - {row.name for row in rows}:
        log.warning("unknown MCP server of the persona: %s", ", ".join(sorted(missing)))
    unasked = [row.id for row in rows if row.discovered_at is None and row.tried_at is None]
    discover = partial(discovery.discover, connections, client, context=context)
    with ThreadPoolExecutor(max(1, len(unasked)), "mcp discovery") as threads:
        asking = [threads.submit(discover, config_id) for config_id in unasked]
        for row in rows:
            if row.is_stale and row.id not in unasked:
                _refresh(connections, client, row.id)
    for asked in asking:
        asked.result()
    servers: dict[UUID, Server] = {}
    for row in rows:
        try:
            servers[row.id] = discovery.server_of(connections.settings, row)
        except McpFailed:
            continue  # it is logged; the run does without these tools
    with connections.reading() as sql:
        offered = mcp_configs.offered(sql, servers, limit=MAX_TOOLS + 1)
    if len(offered) > MAX_TOOLS:
        last = offered[MAX_TOOLS - 1]
        log.warning(
            "more than %d MCP tools: omitting those after %s of %s",
            MAX_TOOLS,
            last.name,
            last.config_name,
        )
    # Those that the run does not have too: the loop knows some of them by their names.
    return _as_tools(
        connections, client, offered[:MAX_TOOLS], servers, {*reserved_names, *BUILTIN_TOOLS}
    )


def model_names(pairs: Collection[tuple[str, str]], taken: Collection[str]) -> list[str]:
    """Choose the name that a model reads for each `(server, tool)`, in order; all differ.

    The tool's own if no other has it, else `<server>_<tool>`; where that is too long, or a
    name already, its end is a digest of both.
    """
    counts = Counter(tool for _, tool in pairs)
    plain = {tool for _, tool in pairs if counts[tool] == 1 and tool not in taken}
    used = {*taken, *plain}
    names: dict[tuple[str, str], str] = {}
    for server, tool in sorted(pairs):
        name = tool if tool in plain else f"{server}_{tool}"
        hashed = f"{server}/{tool}"
        while tool not in plain and (name in used or len(name) > MAX_NAME):
            hashed = hashlib.sha256(hashed.encode()).hexdigest()
            name = f"{server}_{tool}"[: MAX_NAME - _DIGEST - 1] + f"_{hashed[:_DIGEST]}"
        used.add(name)
        names[server, tool] = name
    return [names[pair] for pair in pairs]


def _as_tools(
    connections: Connections,
    client: McpClient,
    rows: Collection[Row[Any]],
    servers: Mapping[UUID, Server],
    taken: Collection[str],
) -> McpTools:
    pairs = [(row.config_name, row.name) for row in rows]
    tools: dict[str, Tool] = {}
    also_named: dict[str, frozenset[str]] = {}
    for name, row in zip(model_names(pairs, taken), rows, strict=True):
        tools[name] = Tool(
            spec=ToolSpec(name, row.description, row.parameters),
            function=_caller(connections, client, servers[row.config_id], row.name, row.hash),
            # The server may hint at the opposite, but a hint is not a promise.
            idempotent=False,
            timeout_seconds=TIMEOUT_SECONDS,
            mcp_tool={"config_id": str(row.config_id), "hash": row.hash},
        )
        also_named[name] = frozenset({row.name, f"{row.config_name}_{row.name}"}) - {name}
    return McpTools(tools, also_named)


def _caller(
    connections: Connections, client: McpClient, listed: Server, tool: str, pinned: str
) -> Callable[[ToolContext, CallInfo, Mapping[str, Any]], str | ToolOutput]:
    def call(
        context: ToolContext, info: CallInfo, arguments: Mapping[str, Any]
    ) -> str | ToolOutput:
        held = None if info.replies is None else info.replies.held
        was_here = held in client.held.runs
        try:
            return make(context, info, arguments)
        except (ToolFailed, Unavailable) as failed:
            if held is None or (was_here and held not in client.held.runs):
                raise  # it was not held, or was continued
            # Its reply needed access, or the database: the server waits in vain, if it still does.
            client.held.release([held])
            reason = str(failed).removeprefix("Not called: ").removesuffix(MAY_BE_DONE)
            raise ToolFailed(f"{reason}{MAY_BE_DONE}") from None

    def make(
        context: ToolContext, info: CallInfo, arguments: Mapping[str, Any]
    ) -> str | ToolOutput:
        replies = access.replies_before(info.replies)
        is_held = replies is not None and replies.held is not None
        # One that is held continues where it has begun, whatever its config is by now.
        server = listed if is_held else _current(connections, listed)

        def made(server: Server, access: OwnersAccess | None) -> str | ToolOutput:
            return client.call(
                server,
                tool,
                arguments,
                pinned=pinned,
                run_id=info.run_id,
                replies=replies,
                meta={CALL_META: info.wire(), TRACEPARENT: info.traceparent},
                on_progress=lambda said: info.report_progress(**said),
                access=access,
                context=context,
            )

        try:
            if server.oauth is None:
                return made(server, None)
            run_id = UUID(info.run_id)
            owner = _owner(connections, info.end_user_id, run_id)
            return access.with_access(
                connections, client, server, owner, run_id, made, is_reply=is_held
            )
        except AuthorizationRequired as required:
            raise access.ask(server, required.made["url"], replies) from None
        except ChangedTools as changed:
            if server.oauth is not None:  # one person's view says nothing of what others see
                _refresh(connections, client, server.config_id)
                raise ToolFailed(str(changed)) from None
            try:
                discovery.record(connections, server, changed.tools)
            except Unavailable:
                log.warning("storing a changed MCP tool of %s failed", server.config_id)
            raise ToolFailed(str(changed)) from None
        except Cancelled:  # before the call: later the run's own stop comes first
            raise ToolFailed("Not called: The worker is shutting down.") from None
        except McpFailed as failed:
            raise ToolFailed(str(failed)) from None

    return call


def _current(connections: Connections, server: Server) -> Server:
    """Return the server as it is now: a changed address or secret applies at once.

    Raises:
        ToolFailed: it was deleted meanwhile, or its secrets cannot be decrypted here.
    """
    try:
        with connections.reading() as sql:
            row = mcp_configs.of_id(sql, server.config_id)
    except Unavailable:
        return server
    if row is None:
        raise ToolFailed(f"Not called: the server {server.name!r} was deleted.")
    try:
        return discovery.server_of(connections.settings, row)
    except McpFailed as failed:
        raise ToolFailed(str(failed)) from None


def _owner(connections: Connections, end_user_id: str | None, run_id: UUID) -> str:
    with connections.reading() as sql:
        return mcp_access.owner_of(end_user_id, queries.creator_of(sql, run_id))


_refreshing: set[UUID] = set()
_lock = threading.Lock()


def _refresh(connections: Connections, client: McpClient, config_id: UUID) -> None:
    """Ask for the tools in a thread, unless one does already."""
    with _lock:
        if config_id in _refreshing:
            return
        _refreshing.add(config_id)

    def ask() -> None:
        try:
            discovery.discover(connections, client, config_id)
        except Unavailable as error:
            log.warning(
                "listing the tools of MCP server %s skipped: %s", config_id, reason_of(error)
            )
        except Exception:
            log.exception("internal error while listing MCP tools")
        finally:
            with _lock:
                _refreshing.discard(config_id)

    threading.Thread(target=ask, name="mcp discovery", daemon=True).start()
