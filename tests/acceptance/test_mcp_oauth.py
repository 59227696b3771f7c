"""An MCP server that requires OAuth: from the question to a person to the call that succeeds."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from sqlalchemy import text

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.storage.tables import metadata
from tests.caller import Caller, client, data_of, error_of, script
from tests.system import PUBLIC_URL, System
from tests.waiting import eventually

pytestmark = pytest.mark.processes

PROGRAM = Path(__file__).parents[1] / "oauth_mcp_server.py"
CALLBACK = "/v1/mcp-oauth/callback"
WHOAMI = {"tool": "whoami"}


@dataclass(frozen=True)
class Secured:
    """The server, and an org whose persona `clerk` uses it."""

    folder: Path
    url: str
    owner: Caller

    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()

    def run(self, *steps: dict[str, Any], **thread: Any) -> str:
        thread_id = self.owner.thread(script(*(steps or (WHOAMI,)), {"say": "ok"}), **thread)
        return self.owner.start(thread_id, persona_id="clerk")

    def page(self, run_id: str) -> str:
        """Wait until the run waits for somebody to visit a page, and return its address."""
        pending = self.owner.until(run_id, "status", "waiting_for_input", "completed")
        asked = pending["pending_input"]
        assert asked is not None, self.outputs(run_id)
        assert ("authorization", "Authorize access to vault.") == (asked["kind"], asked["prompt"])
        return str(asked["url"])

    def outputs(self, run_id: str) -> list[str]:
        return [data["output"] for data in data_of(self.owner.events(run_id), "tool.result")]


def visited(page: str) -> dict[str, str]:
    """Open the page as a browser does; return the parameters that it is sent back with."""
    answer = client("").get(page)
    assert 302 == answer.status_code, answer.text
    back = answer.headers["Location"]
    assert back.startswith(f"{PUBLIC_URL}{CALLBACK}?")
    return dict(parse_qsl(urlsplit(back).query))


def sent_back(caller: Caller, params: dict[str, str]) -> httpx.Response:
    return client(caller.url).get(CALLBACK, params=params)


def authorize(caller: Caller, page: str) -> None:
    answer = sent_back(caller, visited(page))
    assert (200, "text/html; charset=utf-8") == (answer.status_code, answer.headers["Content-Type"])
    assert "Access was granted." in answer.text


@pytest.fixture(scope="module")
def vault(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """The operator has authorized access, so that the server's tools are known."""
    folder, port = tmp_path_factory.mktemp("oauth"), free_port()
    owner, url = system.caller(), f"http://127.0.0.1:{port}"
    with (folder / "errors").open("wb") as errors:
        server = subprocess.Popen([sys.executable, PROGRAM, str(port), folder], stderr=errors)
    try:
        eventually(lambda: _is_open(url))
        config = owner.made("/v1/mcp-configs", {"name": "vault", "url": f"{url}/mcp", "oauth": {}})
        path = f"/v1/mcp-configs/{config['id']}"
        eventually(lambda: owner.get(path)["discovery_error"] is not None)
        asked = owner.get(path)
        assert "An admin has to authorize access" in asked["discovery_error"]
        authorize(owner, asked["oauth"]["authorization_url"])
        eventually(lambda: owner.get(path)["discovered_at"] is not None)
        shown = owner.get(path)
        assert (1, None) == (shown["tool_count"], shown["oauth"]["authorization_url"])
        owner.made("/v1/personas", {"key": "clerk", "mcp": ["vault"]})
        yield Secured(folder, url, owner)
    finally:
        server.kill()
        server.wait()


def _is_open(url: str) -> bool:
    try:
        return httpx.get(f"{url}/mcp", trust_env=False).status_code == 401
    except httpx.TransportError:
        return False


def test_each_end_user_authorizes_once(vault: Secured) -> None:
    """The first run of an end user waits until they have authorized access, and a second one does
    not ask; another end user is asked, and so is a user on whose behalf no end user works.
    """
    first = vault.run(end_user_id="a")
    authorize(vault.owner, vault.page(first))
    assert ["person-2"] == vault.outputs(first)

    assert ["person-2"] == vault.outputs(vault.run(end_user_id="a"))

    for number, thread in ((3, {"end_user_id": "b"}), (4, {})):
        run_id = vault.run(**thread)
        authorize(vault.owner, vault.page(run_id))
        assert [f"person-{number}"] == vault.outputs(run_id)
    assert 1 == vault.log().count("registered")


def test_a_reply_is_taken_once_and_for_its_request_alone(vault: Secured) -> None:
    """A state that is unknown, or was used before, is refused and changes nothing."""
    run_id = vault.run(end_user_id="replies")
    reply = visited(vault.page(run_id))

    refused = (400, "mcp_oauth.state_invalid")
    assert refused == error_of(sent_back(vault.owner, {**reply, "state": "x" + reply["state"]}))
    assert "waiting_for_input" == vault.owner.get_run(run_id)["status"]
    assert 200 == sent_back(vault.owner, reply).status_code
    assert refused == error_of(sent_back(vault.owner, reply))
    [output] = vault.outputs(run_id)
    assert output.startswith("person-")


def test_an_expired_page_is_refused(vault: Secured, system: System) -> None:
    """Its run still waits; a plain `accept` leads to another page."""
    run_id = vault.run(end_user_id="late")
    first = vault.page(run_id)
    with system.connections.transaction() as tx:
        tx.sql.execute(text("UPDATE mcp_authorizations SET expires_at = now()"))

    answer = sent_back(vault.owner, visited(first))
    assert (400, "mcp_oauth.state_invalid") == error_of(answer)
    vault.owner.answer(run_id, "accept")
    eventually(lambda: vault.page(run_id) != first)
    authorize(vault.owner, vault.page(run_id))
    assert 1 == len(vault.outputs(run_id))


def test_runs_that_wait_together_need_one_visit(vault: Secured) -> None:
    """The end user's other runs continue, and pages of other end users are closed."""
    first, second = (vault.run(end_user_id="together") for _ in range(2))
    other = vault.run(end_user_id="somebody else")
    page, others = vault.page(second), vault.page(other)
    authorize(vault.owner, vault.page(first))

    assert vault.outputs(first) == vault.outputs(second)
    answer = sent_back(vault.owner, visited(page))
    assert (400, "mcp_oauth.state_invalid") == error_of(answer)
    assert others == vault.page(other)
    vault.owner.cancel(other)


def test_a_run_whose_page_an_admin_closes_asks_with_another_one(vault: Secured) -> None:
    """The end user is disconnected while they look at the page, which is refused then."""
    run_id = vault.run(end_user_id="disconnected")
    first = vault.page(run_id)
    [config] = vault.owner.get("/v1/mcp-configs")
    grants = f"/v1/mcp-configs/{config['id']}/grants"

    params = {"end_user_id": "disconnected"}
    assert 204 == vault.owner.http.delete(grants, params=params).status_code

    eventually(lambda: vault.page(run_id) != first)
    refused = sent_back(vault.owner, visited(first))
    assert (400, "mcp_oauth.state_invalid") == error_of(refused)
    authorize(vault.owner, vault.page(run_id))
    assert 1 == len(vault.outputs(run_id))


def test_access_that_is_authorized_before_a_run_waits_for_it_is_enough(
    vault: Secured, system: System
) -> None:
    """Another call of its turn takes longer than the visit of another run's page."""
    first = vault.run(end_user_id="early")
    page = vault.page(first)
    slow = {"tool": "sleep", "args": {"seconds": 3}}
    second = vault.run({"tools": [WHOAMI, slow]}, end_user_id="early")

    def pages() -> int:
        query = text("SELECT count(*) FROM mcp_authorizations WHERE owner = 'end_user:early'")
        with system.connections.reading() as sql:
            count: int = sql.execute(query).scalar_one()
        return count

    eventually(lambda: 2 == pages())
    authorize(vault.owner, page)

    assert vault.outputs(first) == vault.outputs(second)[:1]


def test_calls_of_one_turn_ask_once(vault: Secured) -> None:
    """Both are made after the same visit, with the token that one of them gets for the code."""
    run_id = vault.run({"tools": [WHOAMI, WHOAMI]}, end_user_id="twice")
    authorize(vault.owner, vault.page(run_id))

    first, second = vault.outputs(run_id)
    assert first == second
    assert 1 == vault.log().count(f"exchanged {first}")


def test_a_revoked_token_is_refreshed_and_then_asked_for_again(vault: Secured) -> None:
    """A token that can be refreshed leads to no question; one that cannot does, within the call."""
    run_id = vault.run(end_user_id="revoked")
    authorize(vault.owner, vault.page(run_id))
    [person] = vault.outputs(run_id)

    client(vault.url).post("/revoke", params={"what": "access"})
    assert [person] == vault.outputs(vault.run(end_user_id="revoked"))
    assert 1 == vault.log().count(f"refreshed {person}")

    client(vault.url).post("/revoke", params={"what": "all"})
    run_id = vault.run(end_user_id="revoked")
    authorize(vault.owner, vault.page(run_id))
    [other] = vault.outputs(run_id)
    assert other != person


def test_an_expired_token_is_refreshed_once(vault: Secured) -> None:
    """Runs that need it at the same time wait for the one that refreshes it."""
    (vault.folder / "expires_in").write_text("1")
    try:
        run_id = vault.run(end_user_id="expires")
        authorize(vault.owner, vault.page(run_id))
        [person] = vault.outputs(run_id)
    finally:
        (vault.folder / "expires_in").unlink()
    expired, before = time.monotonic() + 1, vault.log().count(f"refreshed {person}")
    eventually(lambda: time.monotonic() > expired)

    run_ids = [vault.run(end_user_id="expires") for _ in range(4)]
    assert 4 * [[person]] == [vault.outputs(run_id) for run_id in run_ids]
    assert before + 1 == vault.log().count(f"refreshed {person}")


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_refreshed_token_outlives_the_call_that_refreshed_it(
    vault: Secured, system: System, is_cancelled: bool
) -> None:
    """It is stored at once, for other runs, and in any case: the old one is of no use any more."""
    end_user = f"cancels {is_cancelled}"
    run_id = vault.run(end_user_id=end_user)
    authorize(vault.owner, vault.page(run_id))
    [person] = vault.outputs(run_id)

    def obtained_at() -> datetime:
        query = text("SELECT obtained_at FROM mcp_grants WHERE owner = :owner")
        with system.connections.reading() as sql:
            values = {"owner": f"end_user:{end_user}"}
            found: datetime = sql.execute(query, values).scalar_one()
        return found

    before = obtained_at()
    client(vault.url).post("/revoke", params={"what": "access"})
    (vault.folder / "slow").touch()
    try:
        run_id = vault.run(end_user_id=end_user)
        eventually(lambda: 2 == vault.log().count(f"called {person}"))
        if is_cancelled:
            vault.owner.cancel(run_id)
        eventually(lambda: obtained_at() > before)
    finally:
        (vault.folder / "slow").unlink()
    assert ("cancelled" if is_cancelled else "completed") == vault.owner.ended(run_id)["status"]


def test_no_token_is_seen_outside_of_what_is_sealed(vault: Secured, system: System) -> None:
    """No table, log or response has one, and Redis does not; the same is true of the codes."""
    run_id = vault.run(end_user_id="canary")
    authorize(vault.owner, vault.page(run_id))
    events = json.dumps(vault.owner.events(run_id))
    assert "person-" in events

    seen = [events, json.dumps(vault.owner.get("/v1/mcp-configs"))]
    seen += [path.read_text() for path in system.folder.glob("*.log")]
    redis = system.connections.redis
    # A scan may return a key twice.
    [stream] = {*redis.scan_iter(match=f"*:run:{run_id}:events", count=1000)}
    seen.append(str(redis.xrange(stream)))
    assert "run.resumed" in seen[-1]
    for canary in ("canary-token-", "canary-code-"):
        assert not any(canary in one for one in seen)
        # A column of bytes is shown in hex.
        found = f"strpos(t::text, '{canary}') > 0 OR strpos(t::text, '{canary.encode().hex()}') > 0"
        with system.connections.reading() as sql:
            for table in metadata.tables:
                query = f'SELECT EXISTS (SELECT FROM "{table}" t WHERE {found})'
                assert not sql.scalar(text(query)), table


def test_who_denies_access_ends_the_call(vault: Secured) -> None:
    """The model reads why, and the run continues."""
    (vault.folder / "denies").touch()
    try:
        run_id = vault.run(end_user_id="denies")
        answer = sent_back(vault.owner, visited(vault.page(run_id)))
    finally:
        (vault.folder / "denies").unlink()

    assert "Access was denied." in answer.text
    assert ["The user has not authorized access to the server."] == vault.outputs(run_id)
    assert "completed" == vault.owner.ended(run_id)["status"]
