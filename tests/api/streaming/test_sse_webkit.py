"""Pings that release what WebKit withholds: soon after a piece, and to WebKit alone."""

import time
from functools import partial

import pytest

from arkloop.api.streaming import sse
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.stream_pages import PING
from tests.api.streaming.followed_runs import Client, FollowedRun
from tests.waiting import eventually

_MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)"
_PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15"
SAFARI = f"{_MAC} Version/26.0 Safari/605.1.15"
WEBKIT = {
    "Safari": SAFARI,
    "WebKitGTK": f"{_MAC} Version/60.5 Safari/605.1.15",
    "an app on a phone": f"{_PHONE} (KHTML, like Gecko) Mobile/15E148",
    "Chrome on a phone": f"{_PHONE} (KHTML, like Gecko) CriOS/140.0 Mobile/15E148 Safari/604.1",
    "Edge on a phone": f"{_PHONE} (KHTML, like Gecko) EdgiOS/140.0 Mobile/15E148 Safari/604.1",
}
_CHROME = "(KHTML, like Gecko) Chrome/140.0.0.0"
OTHERS = {
    "nothing": "",
    "Python": "python-httpx/0.28",
    "Node": "node",
    "Firefox": "Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0",
    "Chrome": f"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 {_CHROME} Safari/537.36",
    "Chrome without a window": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like "
    "Gecko) HeadlessChrome/140.0.0.0 Safari/537.36",
    "Chrome on a phone": f"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 {_CHROME} Mobile",
    "Edge": f"Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 {_CHROME} Safari/537.36 Edg/140.0",
}
#: Less than until the ping of an idle stream.
SOON = 5


def test_webkit_alone_is_sent_pings_soon_after_a_piece(hub: StreamHub, run: FollowedRun) -> None:
    """After the first page and after news; all others get what they have always got."""
    webkit = [Client(hub, run.watch(), agent) for agent in WEBKIT.values()]
    others = [Client(hub, run.watch(), agent) for agent in OTHERS.values()]

    def have_pings(last: bytes) -> bool:
        return all(last + 2 * PING in one.received for one in webkit)

    for text in ("a", "b"):
        eventually(partial(have_pings, run.frames[-1]), seconds=SOON)
        run.write(text)
    run.end()

    whole = sse.HELLO + sse.RETRY + b"".join(run.frames)
    assert [whole] * len(others) == [one.whole() for one in others]
    assert [whole] * len(webkit) == [one.whole().replace(PING, b"") for one in webkit]


def test_the_extra_pings_end(
    hub: StreamHub, run: FollowedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent stream then rests until the ping of all streams is due."""
    monkeypatch.setattr(sse, "WEBKIT_PING_SECONDS", (0.01, 0.02))
    first = Client(hub, run.watch(), SAFARI)
    eventually(lambda: first.received.endswith(run.frames[0] + 2 * PING), seconds=SOON)
    later = Client(hub, run.watch(), SAFARI)
    eventually(lambda: later.received.endswith(run.frames[0] + 2 * PING), seconds=SOON)
    silence = first.received.partition(run.frames[0])[2]
    run.end()
    first.whole()

    assert 2 * PING == silence


def test_the_announcement_of_a_run_is_followed_by_a_ping(hub: StreamHub, run: FollowedRun) -> None:
    """The run may have no events yet."""
    announcement = b"data: a run\n\n"
    watch = run.watch(until=1)

    def follow_on() -> bytes:
        hub.move(watch, run.id, 1)
        return announcement

    environ = {"HTTP_USER_AGENT": SAFARI}
    stream = sse.stream(hub, watch, environ, follow_on=follow_on)
    began = time.monotonic()
    pieces = [next(stream) for _ in range(4)]
    stream.close()

    assert [sse.HELLO, sse.RETRY + run.frames[0], announcement, PING] == pieces
    assert time.monotonic() - began < SOON
