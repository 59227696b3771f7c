"""The access of people to servers, around the requests to their sidecar."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.catalog import mcp_access, mcp_configs
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.worker.contract.input_requests import Replies
from arkloop.worker.mcp import AuthorizationRequired, McpFailed, access
from arkloop.worker.mcp.access import KEY, OwnersAccess, ask, replies_before, with_access
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.failed_requests import NOT_AUTHORIZED
from arkloop.worker.mcp.refresh_lease import lease
from arkloop.worker.mcp.server import Server
from arkloop.worker.tools import ToolFailed
from tests.clients import User
from tests.waiting import eventually, in_parallel

OWNER = "end_user:a"
ISSUER = "https://login"
GRANT = {
    "id": "1",
    "obtained_at": 1.0,
    "client": {"client_id": "c"},
    "at": [ISSUER, f"{ISSUER}/token", "c"],
    "tokens": {"access_token": "access-1", "refresh_token": "refresh-1", "token_type": "Bearer"},
}
CALLBACK = "https://runs.example.com/v1/mcp-oauth/callback"
ACCEPT, DECLINE = {"action": "accept"}, {"action": "decline"}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, public_url="https://runs.example.com")


def store(
    connections: Connections, server: Server, grant: dict[str, object], owner: str = OWNER
) -> None:
    with connections.transaction() as tx:
        mcp_access.expect_grant(tx, server.org_id, server.config_id, owner)
        mcp_access.store_grant(tx, server.org_id, server.config_id, owner, grant)


def set_url(connections: Connections, server: Server, url: str) -> None:
    with connections.transaction() as tx:
        moved = text("UPDATE mcp_configs SET url = :url WHERE id = :id")
        tx.sql.execute(moved, {"url": url, "id": server.config_id})


def test_a_grant_that_another_worker_gets_meanwhile_is_used(
    connections: Connections, server: Server
) -> None:
    """One of two workers that refresh the same token may fail; no person is asked for that."""
    store(connections, server, GRANT)
    used: list[object] = []

    def request(server: Server, access: OwnersAccess | None) -> str:
        assert access is not None
        used.append(access.fields()["grant"])
        if len(used) == 1:
            store(connections, server, {**GRANT, "id": "2", "obtained_at": 2.0})
            raise AuthorizationRequired({"url": "https://login/1", "state": "1"})
        return f"for {server.owner}"

    made = with_access(connections, McpClient(), server, OWNER, new_id(), request)

    assert f"for {OWNER}" == made
    assert [GRANT, {**GRANT, "id": "2", "obtained_at": 2.0}] == used


def test_a_request_without_access_leads_to_a_page_of_the_run(
    connections: Connections, server: Server
) -> None:
    """The client that the operator has registered is known to the sidecar, with its issuer."""
    store(connections, server, GRANT, mcp_access.OPERATOR)

    def request(server: Server, access: OwnersAccess | None) -> None:
        assert access is not None
        client = {"client_id": "c", "issuer": ISSUER}
        assert {"grant": None, "client": client, "answered": None} == access.fields()
        raise AuthorizationRequired({"url": "https://login/1", "state": "1"})

    with pytest.raises(AuthorizationRequired) as required:
        with_access(connections, McpClient(), server, OWNER, new_id(), request)
    assert {"url": "https://login/1"} == required.value.made


EXPIRED = {**GRANT, "expires_at": 1.0}


@pytest.mark.parametrize("grant", [GRANT, EXPIRED])
def test_access_to_a_server_at_another_address_is_not_used(
    connections: Connections, server: Server, grant: dict[str, object]
) -> None:
    """A call that has the former address gets no token of the new one, and asks for none."""
    moved = "https://new.b/"
    set_url(connections, server, moved)
    store(connections, server, {**grant, "server_url": moved})

    def used(server: Server) -> object:
        return with_access(
            *(connections, McpClient(), server, OWNER, new_id()),
            lambda _, access: None if access is None else access.grant,
        )

    assert None is used(server)
    with connections.reading() as sql:
        of = (server.org_id, server.config_id, OWNER)
        assert {**grant, "server_url": moved} == mcp_access.grant_of(sql, connections.settings, *of)
    set_url(connections, server, str(server.url))
    store(connections, server, {**GRANT, "id": "2", "obtained_at": 2.0, "server_url": server.url})
    assert "2" == cast(dict[str, object], used(server))["id"]


@pytest.mark.parametrize("changes", [{"url": "https://new.b/"}, None])
def test_a_server_that_changes_meanwhile_is_not_asked_for_access(
    connections: Connections, server: Server, alice: User, changes: dict[str, str] | None
) -> None:
    """Nobody is sent to the page of a server that was moved, or deleted, during the call."""
    made = {"url": "https://login/1", "state": "1", "server_url": server.url}

    def request(_: Server, access: OwnersAccess | None) -> None:
        with connections.transaction() as tx:
            if changes is None:
                mcp_configs.remove(tx, alice.org_id, server.config_id)
            else:
                mcp_configs.change(tx, alice.org_id, server.config_id, changes)
        raise AuthorizationRequired(made)

    with pytest.raises(McpFailed, match="was deleted or changed") as failed:
        with_access(connections, McpClient(), server, OWNER, new_id(), request)
    assert not isinstance(failed.value, AuthorizationRequired)


def test_a_token_that_another_worker_refreshes_is_waited_for(
    connections: Connections, server: Server
) -> None:
    """A second use of the refresh token could cost the person all access."""
    store(connections, server, EXPIRED)
    refreshed = {**GRANT, "id": "2", "obtained_at": 2.0, "expires_at": time.time() + 3600}
    looked: list[object] = []

    def request(server: Server, access: OwnersAccess | None) -> object:
        assert access is not None
        return access.fields()["grant"]

    def take() -> object:
        looked.append(None)
        return with_access(connections, McpClient(), server, OWNER, new_id(), request)

    key = connections.keys.mcp_refresh(server.config_id, OWNER)
    with ThreadPoolExecutor(1) as thread, lease(connections, key, lambda: False):
        taken = thread.submit(take)
        eventually(lambda: bool(looked))
        with pytest.raises(TimeoutError):
            taken.result(0.3)
        store(connections, server, refreshed)
        assert refreshed == taken.result(60)


def test_calls_of_one_owner_get_access_one_after_the_other(
    connections: Connections, server: Server
) -> None:
    """The second one waits for what the first one is given for its code."""
    store(connections, server, GRANT)

    def call() -> None:
        with_access(connections, McpClient(), server, OWNER, new_id(), lambda *_: None)

    turns = access._turns_of(server, OWNER)
    with ThreadPoolExecutor(1) as thread:
        with connections.transaction() as tx:
            tx.sql.execute(text("LOCK TABLE mcp_authorizations"))
            called = thread.submit(call)  # it reads what is locked
            eventually(turns.lock.locked)
        called.result(60)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("files", "the scope files."), ("", "the scope that the server requires.")],
)
def test_a_scope_that_is_not_granted_fails_the_call(
    connections: Connections, server: Server, missing: str, message: str
) -> None:
    """A page of this run has asked for it and was visited; another run asks, and so does a call
    that needs another scope.
    """
    run_id = new_id()
    asked = {"run_id": str(run_id), "scope": "base files"}
    store(connections, server, {**GRANT, "asked": asked})

    def failure(run_id: UUID, scope: str | None, missing: str | None = missing) -> McpFailed:
        made = {"url": "https://login", "state": new_id().hex, "scope": scope, "missing": missing}

        def request(server: Server, access: OwnersAccess | None) -> None:
            raise AuthorizationRequired(made)

        with pytest.raises(McpFailed) as failed:
            with_access(connections, McpClient(), server, OWNER, run_id, request)
        return failed.value

    assert str(failure(run_id, "files base")).endswith(message)
    assert not isinstance(failure(run_id, None), AuthorizationRequired)
    for run, scope in ((new_id(), "base files"), (run_id, "base files mail")):
        assert isinstance(failure(run, scope), AuthorizationRequired)
        of_run = (server.org_id, server.config_id, OWNER, run)
        with connections.reading() as sql:
            stored = mcp_access.open_request(sql, connections.settings, *of_run)
        assert {"run_id": str(run), "scope": scope} == (stored or {})["asked"]
    assert isinstance(
        failure(run_id, "base files", None), AuthorizationRequired
    )  # the token is old


def test_a_call_gets_back_the_replies_that_it_had_before(server: Server) -> None:
    """The server has asked, too, before it required access; its own state comes back."""
    earlier = Replies({"seats": {"action": "accept", "content": {"seats": 3}}}, "the server's")
    for before in (None, earlier, replace(earlier, held="call")):
        asked = ask(server, "https://login/1", before)
        assert asked.held == (before and before.held)
        assert before == replies_before(Replies({KEY: ACCEPT}, asked.state, asked.held))
    assert earlier == replies_before(earlier)
    with pytest.raises(ToolFailed, match="not authorized"):
        replies_before(Replies({KEY: DECLINE}, "null"))


def test_a_worker_of_the_release_before_reads_what_a_call_had_before(server: Server) -> None:
    """It knows no calls that are held, and takes no field that names one."""
    asked = ask(server, "https://login/1", Replies({"seats": DECLINE}, "the server's"))

    assert {"responses", "state"} == json.loads(asked.state or "").keys()


class Moving(BaseHTTPRequestHandler):
    """A resource that lets nobody in, and the authorization server that it names at the time."""

    issuer = "/first"
    token_status, token_requests, registrations = 401, 0, 0
    may_answer: Callable[[], bool] = staticmethod(lambda: True)

    def do_GET(self) -> None:
        here = f"http://127.0.0.1:{self.server.server_address[1]}"
        issuer = here + type(self).issuer
        if self.path.startswith("/.well-known/oauth-protected-resource"):
            self._send(200, {"resource": f"{here}/mcp", "authorization_servers": [issuer]})
        elif self.path == f"/.well-known/oauth-authorization-server{type(self).issuer}":
            names = {"authorization_endpoint": "authorize", "token_endpoint": "token"}
            names |= {"registration_endpoint": "register"}
            ends = {name: f"{issuer}/{end}" for name, end in names.items()}
            self._send(200, {"issuer": issuer, **ends})
        else:
            self._send(404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/register"):
            type(self).registrations += 1
            self._send(201, {"client_id": f"c{self.registrations}", "redirect_uris": [CALLBACK]})
        elif self.path.endswith("/token"):
            type(self).token_requests += 1
            eventually(type(self).may_answer)
            self._send(type(self).token_status, {"error": "invalid_client"})
        else:
            self._send(401, {})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Keep silent."""


@pytest.fixture
def moving() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Moving) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/mcp"
        server.shutdown()
        thread.join()


class Visitor:
    """A run at the resource, and the person who visits its pages."""

    def __init__(self, connections: Connections, client: McpClient, server: Server) -> None:
        self._connections, self._client, self.server = connections, client, server
        self._run_id = new_id()

    def page(self) -> str:
        with pytest.raises(AuthorizationRequired) as required:
            self.request()
        return str(required.value.made["url"])

    def request(self) -> object:
        return with_access(
            self._connections,
            self._client,
            self.server,
            OWNER,
            self._run_id,
            lambda server, access: self._client.tools(server, access=access),
        )

    def visit(self, url: str) -> None:
        [state] = parse_qs(urlsplit(url).query)["state"]
        with self._connections.transaction() as tx:
            mcp_access.answer(tx, state, "the code", None)


@pytest.fixture
def visitor(
    connections: Connections, server: Server, http_client: McpClient, moving: str
) -> Visitor:
    set_url(connections, server, moving)
    return Visitor(connections, http_client, replace(server, url=moving))


@pytest.mark.processes
def test_a_code_that_is_of_no_use_leads_to_a_page_that_works(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server names another authorization server between the visit and the use of its code."""
    visitor.visit(first := visitor.page())
    monkeypatch.setattr(Moving, "issuer", "/second")
    second = visitor.page()

    assert ["/first/authorize", "/second/authorize"] == [urlsplit(u).path for u in (first, second)]
    visitor.visit(second)


@pytest.mark.processes
def test_an_exchange_that_is_refused_fails_the_request(visitor: Visitor) -> None:
    """It has the error of the authorization server; the next request leads to another page."""
    pages = []
    for _ in range(2):  # the second one has another client
        pages.append(visitor.page())
        visitor.visit(pages[-1])
    assert 2 == len({str(parse_qs(urlsplit(page).query)["client_id"]) for page in pages})
    with pytest.raises(McpFailed, match="failed: invalid_client"):
        visitor.request()
    visitor.page()


@pytest.mark.processes
def test_calls_that_wait_for_a_refresh_fail_with_it(
    connections: Connections, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them would wait for the authorization server as long as the one before."""
    monkeypatch.setattr(Moving, "token_status", 503)
    monkeypatch.setattr(Moving, "token_requests", 0)
    came: set[int] = set()  # threads whose call has begun
    turns_of = access._turns_of

    def noting(*of: Any) -> Any:
        came.add(threading.get_ident())
        return turns_of(*of)

    monkeypatch.setattr(access, "_turns_of", noting)
    monkeypatch.setattr(Moving, "may_answer", staticmethod(lambda: len(came) >= 4))
    issuer = str(visitor.server.url).removesuffix("/mcp") + Moving.issuer
    ends = {"authorization_endpoint": f"{issuer}/authorize", "token_endpoint": f"{issuer}/token"}
    at = {"at": [issuer, f"{issuer}/token", "c"], "issuer": issuer, "resource": None}
    store(connections, visitor.server, {**EXPIRED, **at, "metadata": {"issuer": issuer, **ends}})

    def request(_: int) -> str:
        with pytest.raises(McpFailed) as failed:
            visitor.request()
        return str(failed.value)

    assert {NOT_AUTHORIZED} == set(in_parallel(4, request))
    before = Moving.token_requests
    request(0)
    assert before == Moving.token_requests - before  # those of one call
