"""The OAuth of a session, against a resource and an authorization server in memory."""

import asyncio
import socket
import threading
import time

import pytest

from arkloop.shared.ids import new_id
from arkloop.shared.security.egress import Policy
from arkloop.worker.mcp import AuthorizationRequired, McpFailed
from arkloop.worker.mcp.server import Server
from arkloop.worker.mcp.sessions import Rules, Session
from tests.worker.mcp.oauth_servers import (
    CALLBACK,
    ISSUER,
    NOTHING,
    RESOURCE,
    Internet,
    Process,
    granted,
    in_loop,
    waited_for,
)


def test_a_code_is_exchanged_by_another_process_than_asked_for_it() -> None:
    """The page has the challenge of the verifier that is kept, and nobody else gets the headers
    of the resource.
    """

    async def story(internet: Internet) -> None:
        made = await Process(internet, {}).asked()
        assert made["url"].startswith(f"{ISSUER}/authorize?")
        assert made["verifier"] not in made["url"]
        await Process(internet, {"answered": {**made, "code": "c", "iss": None}}).post()

        [(_, form)] = internet.token_requests
        assert ("c", made["verifier"]) == (form["code"], form["code_verifier"])
        elsewhere = [one for one in internet.seen if one.url.host != "mcp.example.com"]
        assert elsewhere
        assert not any("X-Key" in one.headers for one in elsewhere)

    in_loop(story)


def test_a_code_is_not_sent_to_another_authorization_server() -> None:
    """A resource that names another one after the visit is asked for anew; so is a reply of another
    issuer refused.
    """

    async def story(internet: Internet) -> None:
        made = await Process(internet, {}).asked()
        answered = {**made, "code": "c", "iss": "https://evil.example.com"}
        assert not isinstance(
            await Process(internet, {"answered": answered}).refused(), AuthorizationRequired
        )

        internet.issuer = "https://evil.example.com"
        again = await Process(internet, {"answered": {**made, "code": "c", "iss": None}}).asked()
        assert again["url"].startswith("https://evil.example.com/authorize?")
        assert [] == internet.token_requests

    in_loop(story)


def test_an_expired_token_is_refreshed_where_it_is_from() -> None:
    """A process that knows only what was stored does it, too; the new grant has all of it."""

    async def story(internet: Internet) -> None:
        grant = await granted(internet)
        assert 3000 < grant["expires_at"] - time.time() <= 3600
        grant["expires_at"] = time.time() - 1
        internet.seen.clear()
        process = Process(internet, {"grant": grant})

        assert 200 == await process.post()

        assert ["/token", "/mcp"] == [one.url.path for one in internet.seen]
        assert ("login.example.com", "refresh-1") == (
            internet.token_requests[1][0],
            internet.token_requests[1][1]["refresh_token"],
        )
        refreshed = process.oauth.grant
        assert refreshed is not None
        assert grant["id"] != refreshed["id"]
        assert f"{RESOURCE}/mcp" == grant["server_url"] == refreshed["server_url"]
        process.oauth.take({**NOTHING, "grant": grant})  # another request still has the old one
        assert refreshed == process.oauth.grant

    in_loop(story)


def test_a_revoked_token_is_refreshed_once_and_then_asked_for() -> None:
    """The resource alone knows that it is revoked; the refresh token may be good or not."""

    async def story(internet: Internet) -> None:
        grant = await granted(internet)
        internet.valid.clear()
        process = Process(internet, {"grant": grant})
        assert 200 == await process.post()

        internet.valid.clear()
        internet.token_status = 400
        assert "registered" == (await process.asked())["client"]["client_id"]
        assert 3 == len(internet.token_requests)

    in_loop(story)


def test_a_token_that_is_revoked_is_asked_for_where_there_are_no_sessions() -> None:
    """A 401 of a server without session ids says nothing about a session, which may be retried."""

    async def story(internet: Internet) -> None:
        grant = await granted(internet)
        del grant["tokens"]["refresh_token"]
        process = Process(internet, {"grant": grant})
        assert 200 == await process.post()
        process.oauth.has_worked = True
        internet.valid.clear()

        await process.asked()

    in_loop(story)


def test_an_authorization_server_that_is_down_asks_nobody() -> None:
    """The grant may still be good, and is used again when the server is back."""

    async def story(internet: Internet) -> None:
        grant = {**await granted(internet), "expires_at": time.time() - 1}
        internet.token_status = 503
        process = Process(internet, {"grant": grant})
        assert "not available" in str(await process.refused())

        internet.token_status = 200
        assert 200 == await process.post()

    in_loop(story)


def test_a_slow_request_delays_no_other() -> None:
    """The SDK's own flow sends one at a time until its response begins."""

    async def story(internet: Internet) -> None:
        process = Process(internet, {"grant": await granted(internet)})
        slow = asyncio.create_task(process.post('{"slow": true}'))
        assert 200 == await asyncio.wait_for(process.post(), 60)
        assert not slow.done()
        internet.is_slow.set()
        assert 200 == await slow

    in_loop(story)


def test_a_client_of_the_admins_is_not_registered() -> None:
    """Its secret goes to the token endpoint alone."""

    async def story(internet: Internet) -> None:
        own = {"client_id": "own", "client_secret": "hidden"}
        made = await Process(internet, {}, **own).asked()
        assert "client_id=own&" in made["url"]
        answered = {**made, "code": "c", "iss": None}
        assert 200 == await Process(internet, {"answered": answered}, **own).post()

        assert "/register" not in [one.url.path for one in internet.seen]
        [(_, form)] = internet.token_requests
        assert ("own", "hidden") == (form["client_id"], form["client_secret"])
        assert "hidden" not in made["url"]

    in_loop(story)


def test_a_refresh_token_is_not_sent_to_another_authorization_server() -> None:
    """A resource that names another one has the person asked there; nor does the token go there
    when the access token has expired since.
    """

    async def story(internet: Internet) -> None:
        public = {"client_id": "own"}
        grant = await granted(internet, **public)
        internet.valid.clear()
        internet.issuer = "https://evil.example.com"
        process = Process(internet, {"grant": grant}, **public)
        assert (await process.asked())["url"].startswith("https://evil.example.com/authorize?")

        assert process.oauth.grant is not None
        process.oauth.context.token_expiry_time = time.time() - 1
        assert 200 == await process.post()
        hosts = [(host, form.get("refresh_token")) for host, form in internet.token_requests]
        assert [("login.example.com", None), ("login.example.com", "refresh-1")] == hosts

    in_loop(story)


def test_a_client_secret_is_not_sent_to_another_authorization_server() -> None:
    """The secret belongs to the one at which the owner, or else the operator, was granted access:
    nobody is asked for access at another one.
    """

    async def story(internet: Internet) -> None:
        own = {"client_id": "own", "client_secret": "hidden"}
        made = await Process(internet, {}, **own).asked()
        grant = await granted(internet, **own)
        client = {**grant["client"], "issuer": grant["at"][0]}
        internet.valid.clear()
        internet.issuer = "https://evil.example.com"
        evil = await Process(internet, {}, **own).asked()  # while no issuer is known

        answered = {**evil, "code": "c", "iss": None}
        for access in (
            {"grant": grant},
            {"client": client},
            {"client": client, "answered": answered},
            {"client": client, "answered": {**made, "code": "c", "iss": None}},
        ):
            problem = await Process(internet, access, **own).refused()
            assert "another authorization server" in str(problem)
        assert ["login.example.com"] == [host for host, _ in internet.token_requests]

        internet.issuer = ISSUER
        assert 200 == await Process(internet, {"grant": grant}, **own).post()

    in_loop(story)


@pytest.mark.parametrize("is_named_with_slash", [True, False])
def test_an_issuer_may_be_named_with_or_without_its_last_slash(is_named_with_slash: bool) -> None:
    """Google's servers name theirs with one, which its metadata lacks; both mean one origin. What
    was stored under one name is used under the other.
    """

    async def story(internet: Internet) -> None:
        names = [ISSUER, f"{ISSUER}/"]
        internet.issuer, internet.named = names if is_named_with_slash else names[::-1]
        grant = await granted(internet)
        internet.valid.clear()
        assert 200 == await Process(internet, {"grant": grant}).post()

        internet.named = internet.issuer
        internet.valid.clear()
        assert 200 == await Process(internet, {"grant": grant}).post()
        refreshes = [form["grant_type"] for _, form in internet.token_requests[1:]]
        assert ["refresh_token"] * 2 == refreshes

    in_loop(story)


@pytest.mark.parametrize("issuer", ["https://evil.example.com", f"{ISSUER}/tenant"])
def test_metadata_of_another_issuer_is_refused(issuer: str) -> None:
    """Nobody is asked to visit its page."""

    async def story(internet: Internet) -> None:
        internet.issuer, internet.named = issuer, ISSUER
        problem = await Process(internet, {}).refused()
        assert not isinstance(problem, AuthorizationRequired)

    in_loop(story)


def test_an_authorization_server_inside_is_not_connected_to() -> None:
    """Each connection is checked as those to the resource are, whatever the resource names."""
    listening = [socket.create_server((host, 0)) for host in ("127.0.0.1", "127.0.0.2")]
    (_, port), (_, inside) = (one.getsockname() for one in listening)

    def refuse(connection: socket.socket) -> None:
        connection.recv(65536)
        url = f"http://127.0.0.2:{inside}/.well-known/oauth-protected-resource"
        head = f'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer resource_metadata="{url}"'
        connection.sendall(f"{head}\r\nContent-Length: 0\r\n\r\n".encode())
        connection.close()

    async def connect() -> str:
        oauth = {"client_id": None, "client_secret": None, "redirect_uri": CALLBACK}
        url = f"http://127.0.0.1:{port}/mcp"
        server = Server(org_id=new_id(), config_id=new_id(), name="v", url=url, oauth=oauth)
        rules = Rules(Policy.of(["127.0.0.1/32"]), stdio=False)
        answering = asyncio.to_thread(lambda: refuse(listening[0].accept()[0]))
        session = Session(server, rules)
        with pytest.raises(McpFailed) as failed:
            await asyncio.gather(waited_for(session.oauth, session.tools()), answering)
        await session.close()
        return str(failed.value)

    assert "not on the public network" in asyncio.run(connect())
    listening[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        listening[1].accept()
    for one in listening:
        one.close()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_token_does_not_follow_a_redirect_to_another_server(status: int) -> None:
    """The server has the token and the headers; where it redirects to, nobody connects."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    own, other = (one.getsockname()[1] for one in listening)
    received: list[bytes] = []

    def redirect() -> None:
        head = f"HTTP/1.1 {status} Found\r\nLocation: http://127.0.0.1:{other}/mcp"
        while True:
            try:
                connection, _ = listening[0].accept()
            except OSError:
                return
            with connection:
                received.append(connection.recv(65536))
                connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())

    async def connect() -> str:
        oauth = {"client_id": None, "client_secret": None, "redirect_uri": CALLBACK}
        url, headers = f"http://127.0.0.1:{own}/mcp", {"X-Key": "of the resource"}
        server = Server(
            org_id=new_id(), config_id=new_id(), name="v", url=url, oauth=oauth, headers=headers
        )
        grant = await granted(Internet())
        session = Session(server, Rules(Policy.of(["127.0.0.1/32"]), stdio=False))
        assert session.oauth is not None
        session.oauth.take({**NOTHING, "grant": grant})
        with pytest.raises(McpFailed) as failed:
            await waited_for(session.oauth, session.tools())
        await session.close()
        return str(failed.value)

    threading.Thread(target=redirect, daemon=True).start()
    assert "not followed" in asyncio.run(connect())
    listening[0].shutdown(socket.SHUT_RDWR)
    assert b"authorization: bearer access-1" in received[0].lower()
    assert b"x-key: of the resource" in received[0].lower()
    listening[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        listening[1].accept()
    for one in listening:
        one.close()


def test_access_that_was_withdrawn_here_is_not_used_any_more() -> None:
    """A session forgets its tokens as soon as a request comes without a grant."""

    async def story(internet: Internet) -> None:
        process = Process(internet, {"grant": await granted(internet)})
        assert 200 == await process.post()
        process.oauth.take(NOTHING)
        await process.asked()

    in_loop(story)
