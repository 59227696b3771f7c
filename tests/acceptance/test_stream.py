"""The event stream: its bytes, its cursors, its end; live and later, from two servers at once."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from arkloop.shared.events import event_log
from tests.acceptance.streamed_runs import HELLO, RETRY
from tests.caller import Caller, client, error_of, parsed, text_of, types
from tests.system import System

#: Line ends that are none, look-alikes of fields, and characters of every width.
NASTY = "\u2028\u2029\u0085 \r\n\r data: 1\nid: 7\n\n:x é€\U0001f600 \\u0000 \x0b\x1c\ufeff "


@pytest.fixture(scope="module")
def ended_run(user: Caller) -> str:
    """A run with text, thoughts, tools and all that could break a frame."""
    run_id = user.run(
        {"think": "Let me see."},
        {"say": NASTY * 3, "delay_ms": 20},
        {"tools": [{"tool": "calculator", "args": {"expression": "6*7"}}, {"tool": NASTY}]},
        {"count": 10, "delay_ms": 50},
    )
    assert "completed" == user.ended(run_id)["status"]
    return run_id


def frames_of(system: System, run_id: str) -> list[bytes]:
    """Build what the stream must contain, from the stored rows."""
    stored = []
    with system.connections.reading() as sql:
        while batch := event_log.read_table(sql, UUID(run_id), len(stored)):
            stored += batch
    assert list(range(1, len(stored) + 1)) == [event.seq for event in stored]
    return [f"data: {event.payload}\nid: {event.seq}\n\n".encode() for event in stored]


def stream_of(frames: list[bytes]) -> bytes:
    return HELLO + (RETRY if frames else b"") + b"".join(frames)


def without_pings(stream: bytes) -> bytes:
    return stream.replace(b": ping\n", b"")


def assert_every_cursor_gives_the_stored_events(system: System, user: Caller, run_id: str) -> None:
    frames = frames_of(system, run_id)
    cursors = range(len(frames) + 1)
    readers = [user.at(server.url) for server in system.web]
    with ThreadPoolExecutor(8) as pool:
        got = list(
            pool.map(
                lambda pair: pair[0].raw(run_id, after_seq=pair[1]),
                itertools.product(readers, cursors),
            )
        )
    expected = [stream_of(frames[cursor:]) for cursor in cursors] * 2
    assert expected == [*map(without_pings, got)]  # of a server that pings after half a second


def test_every_cursor_gives_the_stored_events(system: System, user: Caller, ended_run: str) -> None:
    """Each `after_seq` on both servers at once gives byte for byte what Postgres has."""
    assert_every_cursor_gives_the_stored_events(system, user, ended_run)


def test_a_redis_that_lost_everything_changes_no_byte(
    system: System, user: Caller, ended_run: str
) -> None:
    """After FLUSHALL the streams come from Postgres, and are the same."""
    system.connections.redis.flushall()

    assert_every_cursor_gives_the_stored_events(system, user, ended_run)


def test_live_streams_are_what_is_stored_later(system: System, user: Caller) -> None:
    """Clients of two servers, from many cursors, join while the run is going on."""
    # The long pieces are an event each, however slow the machine: short ones are gathered.
    pieces = {"say": "x" * 2048, "repeat": 30, "delay_ms": 20}
    run_id = user.run({"count": 30, "delay_ms": 20}, pieces, {"say": NASTY}, {"say": "end"})
    readers = [user.at(server.url) for server in system.web] * 8

    with ThreadPoolExecutor(16) as pool:
        got = list(
            pool.map(
                lambda pair: pair[1].raw(run_id, after_seq=pair[0]),
                enumerate(readers),
            )
        )

    frames = frames_of(system, run_id)
    assert len(frames) > 20
    assert [stream_of(frames[cursor:]) for cursor in range(16)] == [*map(without_pings, got)]


def test_a_redis_that_loses_everything_costs_a_live_stream_nothing(
    system: System, user: Caller
) -> None:
    """FLUSHALL again and again during the run: followers miss and repeat nothing."""
    run_id = user.run({"count": 80, "delay_ms": 20})
    ended = threading.Event()

    def flush() -> None:
        while not ended.wait(0.1):
            system.connections.redis.flushall()

    with ThreadPoolExecutor(3) as pool:
        flushing = pool.submit(flush)
        got = list(pool.map(lambda s: user.at(s.url).raw(run_id), system.web))
        ended.set()
        flushing.result()

    assert [stream_of(frames_of(system, run_id))] * 2 == [*map(without_pings, got)]


@pytest.fixture(params=["noeviction", "volatile-lru"])
def full_redis(request: pytest.FixtureRequest, system: System) -> Iterator[None]:
    """Redis has no memory left: it refuses what is new, or it forgets streams."""
    redis = system.connections.redis
    before = redis.config_get("maxmemory-policy")["maxmemory-policy"]
    redis.config_set("maxmemory-policy", request.param)
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] + 100_000)
    yield
    redis.config_set("maxmemory", 0)
    redis.config_set("maxmemory-policy", before)


@pytest.mark.usefixtures("full_redis")
def test_a_redis_without_memory_costs_a_live_stream_nothing(system: System, user: Caller) -> None:
    """Runs start, and their followers miss and repeat nothing: the rest comes from Postgres."""
    run_id = user.run({"say": "x" * 8000, "repeat": 60, "delay_ms": 20}, {"say": "end"})

    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda s: user.at(s.url).raw(run_id), system.web))

    assert "run.completed" == types(user.events(run_id))[-1]
    assert [stream_of(frames_of(system, run_id))] * 2 == [*map(without_pings, got)]


def test_the_first_frame_is_exactly_of_the_contracts_form(user: Caller, ended_run: str) -> None:
    """A comment comes at once, `retry` in the first frame, one data line, the id last, LF only."""
    stream = user.raw(ended_run)
    lines = stream.split(b"\n")

    assert [b": ok", b"retry: 1000"] == lines[:2]
    assert lines[2].startswith(b'data: {"seq":1,"type":"run.started","data":{"persona_id":')
    assert lines[2].endswith(b'Z"}')
    assert [b"id: 1", b""] == lines[3:5]
    assert b"\r" not in stream
    assert stream.endswith(b"\n\n")
    assert 1 == stream.count(b"\nretry: ")
    assert b"\nevent:" not in stream


def test_frames_can_be_named(user: Caller, ended_run: str) -> None:
    """`?named=true` puts the type in front of each frame and changes nothing else."""
    plain = user.raw(ended_run)
    named = user.raw(ended_run, named="true")
    names = [line for line in named.split(b"\n") if line.startswith(b"event: ")]

    assert [f"event: {name}".encode() for name in types(user.events(ended_run))] == names
    assert plain == b"\n".join(
        line for line in named.split(b"\n") if not line.startswith(b"event: ")
    )
    assert named.startswith(b": ok\nretry: 1000\nevent: run.started\ndata: ")


def test_the_headers_keep_proxies_from_holding_the_stream_back(
    user: Caller, ended_run: str
) -> None:
    """`GET` and `HEAD` have the same headers; nothing is compressed; `Accept` is not checked."""
    wanted = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }
    asked = {"Accept": "application/json", "Accept-Encoding": "gzip, br"}
    with user.stream(ended_run, asked) as got:
        got.read()
    head = user.http.head(f"/v1/runs/{ended_run}/events")

    for answer in (got, head):
        assert 200 == answer.status_code
        assert wanted == {name: answer.headers[name] for name in wanted}
        assert "Content-Encoding" not in answer.headers
    assert b"" == head.content
    assert "Content-Length" not in head.headers


def test_a_head_of_a_live_run_answers_at_once(user: Caller, waiting_run: str) -> None:
    """It has headers alone, and does not wait for an event."""
    assert 200 == user.http.head(f"/v1/runs/{waiting_run}/events").status_code


def test_a_finished_run_ends_the_stream_or_stops_a_browser(user: Caller, ended_run: str) -> None:
    """A cursor at or past the end gets an empty stream that ends, or 204 with `Last-Event-ID`."""
    last = user.get_run(ended_run)["last_seq"]
    path = f"/v1/runs/{ended_run}/events"
    for cursor in (last, last + 1, 2**63 - 1):
        assert HELLO == user.raw(ended_run, after_seq=cursor)
        stopped = user.http.get(path, headers={"Last-Event-ID": str(cursor)})
        assert (204, b"") == (stopped.status_code, stopped.content)
        assert "Content-Type" not in stopped.headers
        assert 204 == user.http.get(path, params={"lastEventId": cursor}).status_code
        head = user.http.head(path, headers={"Last-Event-ID": str(cursor)})
        assert 204 == head.status_code
        earlier = {"Last-Event-ID": str(last - 1)}
        by_query = user.http.get(path, params={"after_seq": cursor}, headers=earlier)
        assert (200, HELLO) == (by_query.status_code, by_query.content)
    assert 200 == user.http.get(path, headers=earlier).status_code


def test_the_larger_of_both_cursors_counts(user: Caller, ended_run: str) -> None:
    """A client adds `Last-Event-ID` to the address that it began with, or a polyfill the query."""
    for after_seq, last_event_id in ((2, 5), (5, 2), (5, 5)):
        headers = {"Last-Event-ID": str(last_event_id)}
        assert user.raw(ended_run, after_seq=5) == user.raw(ended_run, headers, after_seq=after_seq)
        cursors = {"after_seq": after_seq, "lastEventId": last_event_id}
        assert user.raw(ended_run, after_seq=5) == user.raw(ended_run, **cursors)


@pytest.mark.parametrize("cursor", ["-1", "x", "1.5", "", "1e3", "+1", "９", str(2**63)])
def test_a_cursor_that_is_none_is_refused(user: Caller, ended_run: str, cursor: str) -> None:
    """Negative, not an integer, beyond 63 bits: 422 that names the parameter or header."""
    path = f"/v1/runs/{ended_run}/events"
    for name, answer in (
        ("after_seq", user.http.get(path, params={"after_seq": cursor})),
        ("lastEventId", user.http.get(path, params={"lastEventId": cursor})),
        ("Last-Event-ID", user.http.get(path, headers={"Last-Event-ID": cursor.encode()})),
    ):
        assert (422, "validation.error") == error_of(answer)
        assert [name] == list(answer.json()["details"])


@pytest.mark.parametrize("query", ["follow=no", "named=1", "x=1", "after_seq=1&after_seq=2"])
def test_other_parameters_are_refused(user: Caller, ended_run: str, query: str) -> None:
    """Unknown, malformed and repeated ones: 422."""
    answer = user.http.get(f"/v1/runs/{ended_run}/events?{query}")

    assert (422, "validation.error") == error_of(answer)


def test_what_is_there_can_be_read_without_waiting(
    system: System, user: Caller, waiting_run: str
) -> None:
    """`?follow=false` replays a live run's events, from any cursor, and ends."""
    frames = frames_of(system, waiting_run)

    for cursor in range(len(frames) + 3):
        got = user.raw(waiting_run, follow="false", after_seq=cursor)
        assert stream_of(frames[cursor:]) == got


def test_beyond_the_last_event_of_a_live_run_a_client_waits(system: System, user: Caller) -> None:
    """It gets what comes after its cursor, and nothing before it."""
    run_id = user.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "a b c"})
    cursor = user.until(run_id, "status", "waiting_for_input")["last_seq"] + 2

    with user.stream(run_id, after_seq=cursor) as answer:
        assert 200 == user.answer(run_id, "yes").status_code
        got = answer.read()

    assert stream_of(frames_of(system, run_id)[cursor:]) == got


def test_silence_is_filled_with_pings(system: System, user: Caller, waiting_run: str) -> None:
    """A comment of one line each, so that no client takes it for an event."""
    after = user.get_run(waiting_run)["last_seq"]
    with user.at(system.web[1].url).stream(waiting_run, after_seq=after) as answer:
        got = b""
        for chunk in answer.iter_raw():
            got += chunk
            if got.count(b"ping") >= 3:
                break

    assert HELLO + b": ping\n" * got.count(b"ping") == got


def test_a_stream_that_was_idle_misses_nothing(system: System, user: Caller) -> None:
    """Its connection was parked in silence, as with any server after some seconds."""
    run_id = user.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "a b c"})
    cursor = user.until(run_id, "status", "waiting_for_input")["last_seq"]
    reader = user.at(system.web[1].url)

    with reader.stream(run_id, after_seq=cursor) as answer:
        chunks = answer.iter_raw()
        got = next(chunks)
        while got.count(b"ping") < 3:
            got += next(chunks)
        assert 200 == user.answer(run_id, "yes").status_code
        got += b"".join(chunks)

    assert stream_of(frames_of(system, run_id)[cursor:]) == got.replace(b": ping\n", b"")


def test_every_text_comes_through_unharmed(user: Caller) -> None:
    """What looks like a field, a line end or an end of the stream is text all the same."""
    run_id = user.run({"say": NASTY * 50, "repeat": 2})
    # The scripted model's text, but for the character that Postgres cannot store.
    assert NASTY * 100 == text_of(user.events(run_id))


def test_a_long_run_is_streamed_whole(system: System, user: Caller) -> None:
    """More events than one read of Redis or Postgres gives, with a client that joins late."""
    run_id = user.run({"say": "x" * 2048, "repeat": 1500})
    user.ended(run_id)

    frames = frames_of(system, run_id)
    assert len(frames) > 1500
    assert stream_of(frames) == user.raw(run_id)
    system.connections.redis.flushall()
    assert stream_of(frames[700:]) == user.raw(run_id, after_seq=700)


def test_the_token_is_checked_before_the_first_byte(system: System, ended_run: str) -> None:
    """No token: 401 in the one error shape, and no stream."""
    answer = client(system.web[0].url).get(f"/v1/runs/{ended_run}/events")

    assert (401, "auth.unauthorized") == error_of(answer)


def test_a_client_is_told_of_each_event_at_once(user: Caller) -> None:
    """The time from a word of the model to the client's end is far below the next word's."""

    def usual_delay() -> float:
        run_id = user.run({"count": 7, "delay_ms": 1000})
        delays = []
        with user.stream(run_id) as answer:
            for event in parsed(answer):
                if event["type"] == "message.delta":
                    written = float(event["data"]["content"].split()[-1].split(":")[1])
                    delays.append(time.time() - written)
        return sorted(delays)[len(delays) // 2]

    assert any(usual_delay() < 0.2 for _ in range(5))  # the machine may be busy for a moment
