"""Streams that end early: by the server, the client, or a permission that goes."""

import os
import signal
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.streamed_runs import BROKEN_OFF_SECONDS, HELLO, RETRY
from tests.caller import Caller, types, until_broken_off
from tests.system import System
from tests.waiting import eventually
from tests.webkit_reader import webkit_messages


@pytest.mark.processes
def test_a_server_that_stops_ends_its_streams(
    system: System, user: Caller, waiting_run: str
) -> None:
    """SIGTERM breaks off each stream at once; the client resumes at another server."""
    cursor = user.get_run(waiting_run)["last_seq"]
    with (
        system.one_more_web_server() as server,
        user.at(server.url).stream(waiting_run, after_seq=cursor) as answer,
    ):
        chunks = answer.iter_raw()
        assert HELLO == next(chunks)
        os.kill(server.pid, signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            next(chunks)

    assert HELLO == user.raw(waiting_run, after_seq=cursor, follow="false")


def test_a_client_of_http_1_0_sees_a_reset(user: Caller, waiting_run: str) -> None:
    """Its stream has no chunks, so an orderly end would look like the run's."""
    key_id, key = user.api_key()
    port = urlsplit(user.url).port
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        path = f"/v1/runs/{waiting_run}/events?after_seq=99"
        head = f"GET {path} HTTP/1.0\r\nAuthorization: Bearer {key}\r\n\r\n"
        connection.sendall(head.encode())
        received = b""
        while not received.endswith(HELLO):
            received += connection.recv(4096)
        assert 204 == user.http.delete(f"/v1/api-keys/{key_id}").status_code
        with pytest.raises(ConnectionResetError):
            connection.recv(4096)

    assert b"chunked" not in received.lower()


def test_a_connection_is_used_again_after_a_stream(system: System, user: Caller) -> None:
    """Nothing of a stream's end fails, and the next request needs no connection of its own."""
    run_id = user.run("hello")
    user.ended(run_id)
    _, key = user.api_key()
    head = f"Host: api.example\r\nAuthorization: Bearer {key}\r\n\r\n"
    request = f"GET /v1/runs/{run_id}/events HTTP/1.1\r\n{head}".encode()
    logs = [web.log for web in system.web]
    before = [len(log.read_bytes()) for log in logs]  # other tests use the same servers
    with socket.create_connection(("127.0.0.1", urlsplit(user.url).port), timeout=60) as connection:
        for _ in range(2):
            connection.sendall(request)
            received = b""
            while not received.endswith(b"\r\n0\r\n\r\n"):
                received += (got := connection.recv(4096))
                assert got, received

    logged = b"".join(log.read_bytes()[n:] for log, n in zip(logs, before, strict=True))
    assert b"Error handling request" not in logged


def test_a_browser_that_resumes_gets_what_it_kept_of_a_cut_frame_terminated(
    user: Caller, waiting_run: str
) -> None:
    """A resumed stream first ends the frame that was cut, since WebKit continues reading where the
    last connection broke.

    The parser is WebKit's, `keeping` what was cut anywhere in the frame of the next event.
    """
    cursor = 1
    native = {"Last-Event-ID": str(cursor), "Cache-Control": "no-cache"}
    resumed = user.raw(waiting_run, native, follow="false").decode()
    frame = user.raw(waiting_run, after_seq=cursor, follow="false").decode()
    frame = frame.removeprefix((HELLO + RETRY).decode()).partition("\n\n")[0] + "\n\n"
    whole = webkit_messages("", resumed)

    for cut in range(len(frame)):
        assert whole == webkit_messages(frame[:cut], resumed), frame[:cut]
    assert "2" == whole[0][0]
    for others in ({"Last-Event-ID": "1"}, {"Cache-Control": "no-cache"}):
        assert b"resumed" not in user.raw(waiting_run, others, follow="false")


def test_a_client_that_goes_away_is_noticed(system: System, user: Caller, waiting_run: str) -> None:
    """Its watch ends without a write: a hundred of them leave nothing behind."""
    name = system.connections.keys.news(waiting_run)
    redis = system.connections.redis
    for _ in range(100):
        with user.stream(waiting_run, after_seq=99) as answer:
            chunks = answer.iter_raw()  # without a name it would close the connection at once
            assert HELLO == next(chunks)
            eventually(lambda: 0 < dict(redis.pubsub_numsub(name))[name])

    eventually(lambda: 0 == dict(redis.pubsub_numsub(name))[name])


def test_a_revoked_key_ends_its_open_streams(user: Caller, waiting_run: str) -> None:
    """A revoked key's streams end within 5 s with an error, so that the client resumes with another
    token.
    """
    key_id, key = user.api_key()
    cursor = user.get_run(waiting_run)["last_seq"]
    with user.at(token=key).stream(waiting_run, after_seq=cursor) as answer:
        assert 204 == user.http.delete(f"/v1/api-keys/{key_id}").status_code
        revoked = time.monotonic()
        assert [] == until_broken_off(answer)

    assert time.monotonic() - revoked < BROKEN_OFF_SECONDS


def test_an_expired_key_ends_its_open_streams(user: Caller, waiting_run: str) -> None:
    """They end with an error; a new token resumes them."""
    expires_at = datetime.now(UTC) + timedelta(seconds=10)
    _, key = user.api_key(expires_at=expires_at.isoformat().replace("+00:00", "Z"))
    cursor = user.get_run(waiting_run)["last_seq"]
    with user.at(token=key).stream(waiting_run, after_seq=cursor) as answer:
        assert [] == until_broken_off(answer)

    assert timedelta(0) <= datetime.now(UTC) - expires_at < timedelta(seconds=BROKEN_OFF_SECONDS)
    assert HELLO == user.raw(waiting_run, after_seq=cursor, follow="false")


def test_a_thread_that_turns_private_ends_the_streams_of_others(
    system: System, user: Caller
) -> None:
    """Other users' streams end within the hub's poll, while the creator's continues to the end."""
    run_id = user.run({"count": 200, "delay_ms": 100})
    thread_id = user.get_run(run_id)["thread_id"]
    colleague = system.colleague(user)
    user.seen(run_id, "message.delta")

    def turn_private() -> None:
        colleague_is_in.wait(60)
        user.http.patch(f"/v1/threads/{thread_id}", json={"is_private": True})

    colleague_is_in = threading.Event()
    threading.Thread(target=turn_private).start()
    with colleague.stream(run_id) as stream:
        colleague_is_in.set()
        received = until_broken_off(stream)

    assert "run.completed" not in types(received)
    assert "run.completed" == user.events(run_id)[-1]["type"]
