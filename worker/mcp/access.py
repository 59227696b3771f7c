"""The access of people to servers that require OAuth, around the requests to their sidecar."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from sqlalchemy import Connection

from arkloop.shared.catalog import mcp_access, mcp_clients
from arkloop.shared.runs import commands
from arkloop.shared.runs.form_replies import AUTHORIZATION
from arkloop.shared.security.encryption import NoEncryptionKey
from arkloop.shared.storage.connections import Connections
from arkloop.worker.contract.input_requests import InputRequired, Replies
from arkloop.worker.mcp import AuthorizationRequired, Cancelled, McpFailed, grants
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.refresh_lease import lease
from arkloop.worker.mcp.server import Server
from arkloop.worker.tools import ToolFailed

log = logging.getLogger(__name__)

#: What is asked on behalf of a server, among what the server itself asks.
KEY = "arkloop/oauth"

#: Of what a server says that a token lacks.
MAX_SCOPE_CHARACTERS = 500

T = TypeVar("T")


@dataclass(slots=True)
class OwnersAccess:
    """Access that the owner of a session has granted; `client` is known without a grant, too."""

    connections: Connections
    server: Server
    owner: str
    grant: Mapping[str, Any] | None
    client: Mapping[str, Any] | None = None
    answered: Mapping[str, Any] | None = None

    def fields(self) -> Mapping[str, Any]:
        return {"grant": self.grant, "client": self.client, "answered": self.answered}

    def keep(self, grant: Mapping[str, Any]) -> None:
        self.grant = grant
        server = self.server
        with self.connections.transaction() as tx:
            mcp_access.store_grant(tx, server.org_id, server.config_id, self.owner, grant)


def with_access(
    connections: Connections,
    client: McpClient,
    server: Server,
    owner: str,
    run_id: UUID | None,
    request: Callable[[Server, OwnersAccess | None], T],
    *,
    is_reply: bool = False,
) -> T:
    """Make a request with the owner's access, if the server requires any.

    One that `is_reply`, to what the server has asked in a call, cannot itself lead to a page.

    Raises:
        AuthorizationRequired: the page that is to be visited is stored, and is its `made["url"]`.
        McpFailed, and whatever `request` raises.
    """
    if server.oauth is None:
        return request(server, None)
    server = replace(server, owner=owner)
    began = time.monotonic()
    turns = _turns_of(server, owner)  # held to the end, or later callers get others
    access = _current(turns, connections, client, server, owner, run_id)
    while True:
        try:
            _refresh_expired(turns, client, access, began)
            if is_reply and access.grant is not None and grants.may_have_expired(access.grant):
                _list_tools(client, server, access)
            return request(server, access)
        except AuthorizationRequired as required:
            before, made = access.grant, required.made
        access = _current(turns, connections, client, server, owner, run_id)
        if access.grant is not None and access.grant != before:
            continue  # another worker has got a new one meanwhile
        asked = {"run_id": None if run_id is None else str(run_id), "scope": made.get("scope")}
        if run_id is not None and _was_asked(before, made, asked):
            missing = made["missing"][:MAX_SCOPE_CHARACTERS] or "that the server requires"
            raise McpFailed(f"The account was not given the scope {missing}.")
        made = {**made, "asked": asked}
        try:
            with connections.transaction() as tx:
                url = mcp_access.request(tx, server.org_id, server.config_id, owner, run_id, made)
        except mcp_access.ServerChanged:
            raise McpFailed("Not called: The server was deleted or changed meanwhile.") from None
        if url is not None:
            raise AuthorizationRequired({"url": url})
        # Two runs that opened one session together got the same request: this one makes another.


def _list_tools(client: McpClient, server: Server, access: OwnersAccess) -> None:
    """List the tools to learn whether the server still accepts the token.

    Raises:
        AuthorizationRequired: it does not.
        Cancelled
    """
    try:
        client.tools(server, access=access)
    except (AuthorizationRequired, Cancelled):
        raise
    except McpFailed:
        pass  # this says nothing of the token: the reply is sent


def _was_asked(
    grant: Mapping[str, Any] | None, made: Mapping[str, Any], asked: Mapping[str, Any]
) -> bool:
    """Return whether a scope is missing which a page that was visited for this run has asked for.

    The authorization server has not granted it then, and another page would lead to no more.
    """
    earlier = (grant or {}).get("asked") or {"run_id": None}
    if made.get("missing") is None or earlier["run_id"] != asked["run_id"]:
        return False
    scopes, before = ((one["scope"] or "").split() for one in (asked, earlier))
    return set(scopes) <= set(before)


def ask(server: Server, url: str, replies: Replies | None) -> InputRequired:
    """Return the request that ends a call until somebody has visited the page.

    The call is then made again with the `replies` that it had so far. One that they were to
    continue stays held meanwhile.
    """
    held = None if replies is None else replies.held
    asked = {
        "key": KEY,
        "kind": AUTHORIZATION,
        "prompt": f"Authorize access to {server.name}.",
        "url": url,
        "is_shared": True,
    }
    return InputRequired([asked], "null" if replies is None else replies.to_text(), held)


def replies_before(replies: Replies | None) -> Replies | None:
    """Return the replies that a call had before it was ended by `ask`.

    Raises:
        ToolFailed: access was not authorized.
    """
    if replies is None or KEY not in replies.responses:
        return replies
    if replies.responses[KEY]["action"] != "accept":
        raise ToolFailed("The user has not authorized access to the server.")
    earlier = json.loads(replies.state or "null")
    return None if earlier is None else Replies(**earlier)


class _Turns:
    """Calls of one owner in this process: one gets tokens while the others wait for these."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.failed_at = float("-inf")
        self.failure = ""


_lock = threading.Lock()
_turns: WeakValueDictionary[tuple[UUID, str], _Turns] = WeakValueDictionary()


def _turns_of(server: Server, owner: str) -> _Turns:
    with _lock:  # two threads would make two
        return _turns.setdefault((server.config_id, owner), _Turns())


def _current(
    turns: _Turns,
    connections: Connections,
    client: McpClient,
    server: Server,
    owner: str,
    run_id: UUID | None,
) -> OwnersAccess:
    """Read what the owner has granted; if a code has come for the run, it is used first.

    A code of no use any more is forgotten: the request then leads to another page.

    Raises:
        McpFailed
    """
    with turns.lock:
        access, answered = _stored(connections, server, owner, run_id)
        if answered is not None:
            exchange = replace(access, grant=None, answered=answered)
            try:
                client.tools(server, access=exchange)
            except AuthorizationRequired as required:
                made = required.made["client"]
                if made["client_id"] != answered["client"]["client_id"]:
                    # The one of the code was refused, and may still be the one that is stored.
                    access.client = {**made, "is_replacement": True}
                return access
            except McpFailed as failed:
                if exchange.grant is None:
                    raise
                if isinstance(failed, Cancelled):
                    _resume_others(connections, server, owner)  # the code cannot be used again
                    raise
            access.grant = exchange.grant
            _resume_others(connections, server, owner)
    return access


def _refresh_expired(turns: _Turns, client: McpClient, access: OwnersAccess, began: float) -> None:
    """Refresh a token that has expired, unless another call does it, here or in another worker.

    `began` is when the call came: it may have waited for one of the same owner since.

    Raises:
        AuthorizationRequired: it cannot be refreshed any more.
        McpFailed
    """
    if not _can_be_refreshed(access.grant):
        return
    with turns.lock:
        if turns.failed_at > began:
            raise McpFailed(turns.failure)  # each call would wait as long as the one before
        try:
            _refresh(client, access)
        except (AuthorizationRequired, Cancelled):
            raise
        except McpFailed as failed:
            turns.failed_at, turns.failure = time.monotonic(), str(failed)
            raise


def _refresh(client: McpClient, access: OwnersAccess) -> None:
    connections, server = access.connections, access.server

    def is_needless() -> bool:
        with connections.reading() as sql:
            access.grant = _grant(sql, access)
        return not _can_be_refreshed(access.grant)

    key = connections.keys.mcp_refresh(server.config_id, access.owner)
    with lease(connections, key, is_needless):
        if is_needless():
            return
        try:
            client.tools(server, access=access)
        except McpFailed:
            if _can_be_refreshed(access.grant):  # else the request may succeed
                raise


def _resume_others(connections: Connections, server: Server, owner: str) -> None:
    """Let the owner's other runs, which wait for the same access, make their calls again."""
    with connections.transaction() as tx:
        closed = mcp_access.close_open(tx, server.config_id, owner)
        commands.answer_visits(tx, closed)


def _can_be_refreshed(grant: Mapping[str, Any] | None) -> bool:
    """Return whether the access token has expired, and there is one to refresh it with."""
    return grant is not None and grants.is_refreshable(grant) and grants.has_expired(grant)


def _stored(
    connections: Connections, server: Server, owner: str, run_id: UUID | None
) -> tuple[OwnersAccess, Mapping[str, Any] | None]:
    settings, org_id, config_id = connections.settings, server.org_id, server.config_id
    access = OwnersAccess(connections, server, owner, grant=None)
    try:
        with connections.transaction() as tx:
            answered = mcp_access.take_answered(tx, org_id, config_id, owner, run_id)
            if not _is_for(server, answered):
                answered = None
            access.grant = _grant(tx.sql, access)
            if answered is not None or _may_need_client(server, access.grant):
                access.client = mcp_clients.client_of(tx.sql, settings, org_id, config_id)
    except NoEncryptionKey:
        log.error("ARKLOOP_ENCRYPTION_KEY is not set: cannot use what people have granted")
        raise McpFailed("The access that was granted cannot be decrypted here.") from None
    return access, answered


def _may_need_client(server: Server, grant: Mapping[str, Any] | None) -> bool:
    """Return whether a request may need the client of a page, or find that the one of the grant is
    forgotten.
    """
    if grant is None or grants.is_refreshable(grant) or grants.has_expired(grant):
        return True
    client, here = grant["client"], (server.oauth or {}).get("redirect_uri")
    if here not in (client.get("redirect_uris") or [here]):
        return True
    return grants.has_secret_expired(client.get("client_secret_expires_at"))


def _grant(sql: Connection, access: OwnersAccess) -> Mapping[str, Any] | None:
    server = access.server
    of = (server.org_id, server.config_id, access.owner)
    grant = mcp_access.grant_of(sql, access.connections.settings, *of)
    return grant if _is_for(server, grant) else None


def _is_for(server: Server, kept: Mapping[str, Any] | None) -> bool:
    """Return whether a grant or a request is for this address of the server.

    The config may have got another one since `server` was read, or while another call got tokens.
    """
    # Earlier releases have not stored the address.
    return kept is None or kept.get("server_url", server.url) == server.url
