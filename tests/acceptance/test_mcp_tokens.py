"""Tokens for an MCP server that expire while a call is held, or are refreshed as a worker ends."""

import json
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import Queue
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from arkloop.shared.catalog import mcp_access
from tests.caller import Caller, client, data_of, script
from tests.system import System
from tests.waiting import eventually
from tests.worker.mcp.lying_mcp_server import Lying, lying

pytestmark = pytest.mark.processes

CALLBACK = "/v1/mcp-oauth/callback"
END_USER = "customer"
REPLY = {"action": "accept", "content": {"n": "3"}}


@dataclass
class Tokens:
    """The tokens of a server that asks for a form in each call, in the order of their issue.

    A refresh token is for one use, and for none where `may_refresh` returns False; without
    `has_refresh_tokens` there are none. Without `has_expiry` the server does not say when a token
    expires. With `fails_to_list` it responds with an error to requests for the list of tools.
    """

    may_refresh: Callable[[], bool]
    has_refresh_tokens: bool = True
    has_expiry: bool = True
    fails_to_list: bool = False
    issued: list[str] = field(default_factory=list)
    #: What the server has received.
    methods: list[str | None] = field(default_factory=list)
    #: Called before the response to a request for the list of tools.
    on_list: Callable[[], object] = lambda: None

    def take(self, handler: Lying) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"])).decode()
        if handler.path == "/token":
            self._issue(handler, parse_qs(body).get("refresh_token"))
            return
        handler.message = json.loads(body)
        self.methods.append(handler.message.get("method"))
        if (handler.headers["Authorization"] or "").removeprefix("Bearer ") in self.issued:
            if self.methods[-1] == "tools/list":
                self.on_list()
                if self.fails_to_list:
                    handler.send(500, b"")
                    return
            handler.respond(handler.message)
        else:
            handler.send(401, b"")

    def _issue(self, handler: Lying, spent: list[str] | None) -> None:
        if spent is not None and (spent != self.issued[-1:] or not self.may_refresh()):
            handler.send(400, b'{"error": "invalid_grant"}')
            return
        self.issued.append(token := secrets.token_hex(8))
        tokens: dict[str, Any] = {"access_token": token, "token_type": "Bearer"}
        if self.has_expiry:
            tokens["expires_in"] = 3600
        if self.has_refresh_tokens:
            tokens["refresh_token"] = token
        handler.send_json(tokens)


@dataclass(frozen=True)
class Vault:
    """The server, and an org whose persona `clerk` uses it."""

    system: System
    owner: Caller
    config_id: str
    tokens: Tokens

    def run(self) -> str:
        steps = script({"tool": "lie", "args": {}}, {"say": "ok"})
        thread = self.owner.thread(steps, end_user_id=END_USER)
        return self.owner.start(thread, persona_id="clerk")

    def asked(self, run_id: str, kind: str) -> dict[str, Any]:
        """Wait until the run waits for an input of this kind, and return the request."""
        pending: list[dict[str, Any]] = []

        def is_there() -> bool:
            pending[:] = [self.owner.get_run(run_id)["pending_input"] or {}]
            return pending[0].get("kind") == kind

        eventually(is_there)
        return pending[0]

    def grant(self) -> Mapping[str, Any]:
        of = (UUID(self.owner.org_id), UUID(self.config_id), f"end_user:{END_USER}")
        with self.system.connections.reading() as sql:
            found = mcp_access.grant_of(sql, self.system.web[0].settings, *of)
        assert found is not None
        return found

    def expire(self) -> None:
        """Let the end user's access token expire."""
        of = (UUID(self.owner.org_id), UUID(self.config_id), f"end_user:{END_USER}")
        expired = {"id": secrets.token_hex(4), "obtained_at": time.time(), "expires_at": 1.0}
        grant = {**self.grant(), **expired}
        with self.system.connections.transaction() as tx:
            mcp_access.store_grant(tx, *of, grant)


def ask(handler: Lying) -> None:
    question = secrets.token_hex(4)
    handler.ask(question)
    reply = handler.replies[question].get()["result"]
    content = [{"type": "text", "text": json.dumps(reply)}]
    handler.say({"id": handler.message["id"], "result": {"content": content}})


def visit(owner: Caller, page: str, **result: str) -> None:
    """Come back from the page with its result."""
    [state] = parse_qs(urlsplit(page).query)["state"]
    client(owner.url).get(CALLBACK, params={"state": state, **result})


@contextmanager
def vault(system: System, may_refresh: Callable[[], bool]) -> Iterator[Vault]:
    """Start it; the operator has authorized access."""
    owner, tokens = system.caller(), Tokens(may_refresh)

    def do_POST(handler: Lying) -> None:
        tokens.take(handler)

    with lying(ask, do_POST=do_POST, replies=defaultdict(Queue), session_id="s") as (url, _):
        config = {"name": "vault", "url": url, "oauth": {"client_id": "own"}}
        made = owner.made("/v1/mcp-configs", config)
        path = f"/v1/mcp-configs/{made['id']}"
        eventually(lambda: owner.get(path)["oauth"]["authorization_url"])
        visit(owner, owner.get(path)["oauth"]["authorization_url"], code="c")
        eventually(lambda: owner.get(path)["discovered_at"] is not None)
        owner.made("/v1/personas", {"key": "clerk", "mcp": ["vault"]})
        yield Vault(system, owner, made["id"], tokens)


@pytest.mark.parametrize(
    ("is_authorized", "has_refresh_tokens", "has_expiry"),
    [(True, True, True), (False, True, True), (True, False, True), (True, False, False)],
)
def test_a_call_stays_held_until_its_page_was_visited(
    system: System, is_authorized: bool, has_refresh_tokens: bool, has_expiry: bool
) -> None:
    """The run goes back to the worker that has the call, and the page expires as the form does. A
    page that is refused ends the call at the server, and the run continues.
    """
    with vault(system, lambda: False) as there:
        there.tokens.has_refresh_tokens = has_refresh_tokens
        there.tokens.has_expiry = has_expiry
        run_id = there.run()
        page = there.asked(run_id, "authorization")
        assert "is_held" not in page
        visit(there.owner, page["url"], code="c")
        assert there.asked(run_id, "form")["is_held"]
        if has_expiry:
            there.expire()
        there.tokens.issued.clear()
        there.owner.answer(run_id, json.dumps(REPLY))

        page = there.asked(run_id, "authorization")
        assert page.get("is_held")
        seconds = datetime.fromisoformat(page["expires_at"]) - datetime.now(UTC)
        assert seconds.total_seconds() <= 600
        result = {"code": "c"} if is_authorized else {"error": "access_denied"}
        visit(there.owner, page["url"], **result)

        there.owner.until(run_id, "status", "completed")
        [read] = data_of(there.owner.events(run_id), "tool.result")
        if is_authorized:
            assert REPLY == json.loads(read["output"])
        else:
            assert "The user has not authorized access" in read["output"]
            eventually(lambda: "notifications/cancelled" in there.tokens.methods)


def test_a_reply_is_sent_though_the_tools_cannot_be_listed(system: System) -> None:
    """Another error than a refused token says nothing of the access."""
    with vault(system, lambda: False) as there:
        there.tokens.has_expiry = False
        run_id = there.run()
        visit(there.owner, there.asked(run_id, "authorization")["url"], code="c")
        assert there.asked(run_id, "form")["is_held"]
        there.tokens.fails_to_list = True
        there.owner.answer(run_id, json.dumps(REPLY))

        there.owner.until(run_id, "status", "completed")
        [read] = data_of(there.owner.events(run_id), "tool.result")
        assert REPLY == json.loads(read["output"])


def test_a_token_that_is_refreshed_outlasts_its_worker(system: System) -> None:
    """During a deploy the authorization server responds after the run was handed over, to which the
    token before is a spent one: nobody is asked for access again.
    """
    refreshing, answered = threading.Event(), threading.Event()

    def refresh() -> bool:
        refreshing.set()
        return answered.wait(60)

    with vault(system, refresh) as there, ThreadPoolExecutor(1) as thread:
        run_id = there.run()
        visit(there.owner, there.asked(run_id, "authorization")["url"], code="c")
        there.asked(run_id, "form")
        there.expire()
        run_id = there.run()
        assert refreshing.wait(60)
        stopped = thread.submit(system.worker.stop)
        try:
            there.owner.until(run_id, "phase", "queued")
            with pytest.raises(TimeoutError):
                stopped.result(2.0)
            answered.set()
            stopped.result(60)
            assert there.tokens.issued[-1] == there.grant()["tokens"]["refresh_token"]
        finally:
            answered.set()
            stopped.result(60)
            system.worker.start()
        there.asked(there.run(), "form")


def test_access_that_a_worker_gets_as_it_ends_is_for_all_runs(system: System) -> None:
    """A deploy comes between the use of a code and the list of tools: another run, which waits for
    the same access, makes its call in the next worker.
    """
    listing, listed = threading.Event(), threading.Event()

    def list_slowly() -> None:
        listing.set()
        listed.wait(60)

    with vault(system, lambda: True) as there, ThreadPoolExecutor(1) as thread:
        one, other = there.run(), there.run()
        page = there.asked(one, "authorization")
        there.asked(other, "authorization")
        there.tokens.on_list = list_slowly
        visit(there.owner, page["url"], code="c")
        assert listing.wait(60)
        stopped = thread.submit(system.worker.stop)
        try:
            there.owner.until(one, "phase", "queued")
        finally:
            listed.set()
            stopped.result(60)
            system.worker.start()
        there.asked(other, "form")
