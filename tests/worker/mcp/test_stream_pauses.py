"""Pauses before a stream of notifications is opened again that its server refuses."""

import asyncio
import dataclasses
import threading
import time
from itertools import pairwise
from typing import Any

import pytest

from arkloop.worker.mcp import stream_pauses
from arkloop.worker.mcp.checked_http import CheckedClient
from arkloop.worker.mcp.sessions import Rules, Session
from tests.worker.mcp.lying_mcp_server import Lying
from tests.worker.mcp.oauth_servers import CALLBACK, NOTHING, Internet, granted, waited_for
from tests.worker.mcp.sdk_server import server_at
from tests.worker.mcp.test_checked_http_streams import (
    POLICY,
    asking,
    begin,
    booked,
    break_off,
    opened,
    refuse,
)

pytestmark = pytest.mark.processes


def test_pauses_grow_while_a_server_refuses_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never opens another one is asked every 30 seconds."""
    monkeypatch.setattr(stream_pauses, "REOPEN_SECONDS", 0.05)
    monkeypatch.setattr(stream_pauses, "MAX_REOPEN_SECONDS", 0.2)
    times: list[float] = []

    def note(handler: Lying) -> None:
        times.append(time.monotonic())
        refuse(handler, 403)

    async def story(url: str) -> None:
        async with CheckedClient({}, POLICY) as client, asyncio.timeout(8):
            for _ in range(11):
                assert 200 == await opened(client, url)

    with asking(break_off, *[note] * 9, break_off) as url:
        asyncio.run(story(url))
    pauses = [after - before for before, after in pairwise(times)]
    assert all(map(float.__ge__, pauses, [0.05, 0.1, *[0.2] * 6]))


@pytest.mark.parametrize("is_expiry_known", [True, False])
def test_a_stream_is_opened_again_with_the_next_token(
    monkeypatch: pytest.MonkeyPatch, is_expiry_known: bool
) -> None:
    """The next call refreshes the token, and its tool asks in the stream. A token that has expired
    is not sent for a stream; one that is refused without having expired is sent once in a pause.
    """
    monkeypatch.setattr(stream_pauses, "REOPEN_SECONDS", 60.0)
    old, new = "Bearer access-1", "Bearer access-2"
    valid, sent = [old], []
    is_open, is_broken = threading.Event(), threading.Event()

    def break_off_later(handler: Lying) -> None:
        begin(handler)
        is_open.set()
        is_broken.wait(20)
        handler.close_connection = True

    def opens(handler: Lying) -> bool:
        sent.append(handler.headers["Authorization"])
        return sent[-1] in valid

    def post(handler: Lying) -> None:
        if handler.path == "/token":
            handler.rfile.read(int(handler.headers["Content-Length"]))
            valid[:] = [new]
            handler.send_json({"access_token": "access-2", "token_type": "Bearer"})
        elif handler.headers["Authorization"] in valid:
            Lying.do_POST(handler)
        else:
            handler.close_connection = True
            refuse(handler, 401)

    async def story(url: str) -> str:
        oauth = {"client_id": "own", "client_secret": None, "redirect_uri": CALLBACK}
        origin = url.removesuffix("/mcp")
        grant: dict[str, Any] = {
            **await granted(Internet(), client_id="own"),
            "at": [origin, f"{origin}/token", "own"],
            "obtained_at": 0.0,
            **dict.fromkeys(("issuer", "metadata", "resource")),
        }
        server = dataclasses.replace(server_at(url), oauth=oauth)
        session = Session(server, Rules(POLICY, stdio=False))
        assert session.oauth is not None
        session.oauth.take({**NOTHING, "grant": grant})
        await waited_for(session.oauth, session.tools())
        await asyncio.to_thread(is_open.wait, 20)
        expires_at = time.time() - 1 if is_expiry_known else None
        session.oauth.take({**NOTHING, "grant": {**grant, "id": "2", "expires_at": expires_at}})
        valid.clear()
        is_broken.set()
        await asyncio.sleep(0.3)  # for a GET that must not come
        assert [old] * (not is_expiry_known) == sent
        return await booked(session)

    with asking(break_off_later, opens=opens, do_POST=post) as url:
        assert "3" == asyncio.run(story(url))
    assert new == sent[-1]


def test_a_stream_without_a_token_is_opened_again() -> None:
    """A server may require access for some of its tools alone, and others may ask."""

    async def story(url: str) -> str:
        oauth = {"client_id": "own", "client_secret": None, "redirect_uri": CALLBACK}
        server = dataclasses.replace(server_at(url), oauth=oauth)
        session = Session(server, Rules(POLICY, stdio=False))
        assert session.oauth is not None
        session.oauth.take(NOTHING)
        return await booked(session)

    with asking(break_off) as url:
        assert "3" == asyncio.run(story(url))
