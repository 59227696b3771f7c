"""An application with responses that are parked, for gunicorn with the worker of the service."""

import json
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import gevent

from arkloop.api.http.parking import IDLE, ParkableBody, ParkedConnection

LONG = b"x" * 100_000


class _Sleeper:
    """A response's wait for `/wake`."""

    def __init__(self) -> None:
        self.connection: Any = None
        self.parked: ParkedConnection | None = None

    def park(self, parked: ParkedConnection) -> bool:
        self.parked = parked
        return True

    def wake(self) -> None:
        parked, self.parked = self.parked, None
        assert parked is not None
        parked.resume()


_sleepers: list[_Sleeper] = []
_ended: list[str] = []


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Handle `/stream`, and what is asked of all streams: `/wake`, `/send` and `/state`."""
    path = environ["PATH_INFO"]
    if path == "/stream":
        query = {name: last for name, [*_, last] in parse_qs(environ["QUERY_STRING"]).items()}
        sleeper = _Sleeper()
        _sleepers.append(sleeper)
        start_response("200 OK", [("Content-Type", "text/plain")])
        if "wake_after" in query:
            gevent.spawn_later(float(query["wake_after"]), sleeper.wake)
        return ParkableBody(_chunks(query), sleeper, partial(_close, "end_fails" in query))
    answer: Any = None
    parked = [sleeper for sleeper in _sleepers if sleeper.parked is not None]
    if path == "/forget":
        _sleepers.clear()
        _ended.clear()
    elif path == "/wake":
        for sleeper in parked:
            sleeper.wake()
    elif path == "/send":
        answer = [sleeper.parked.send(b"sent\n") for sleeper in parked if sleeper.parked]
    elif path == "/fill":
        [sleeper] = parked
        answer = 0
        while sleeper.parked is not None and sleeper.parked.send(LONG):
            answer += 1
        sleeper.wake()
    else:
        answer = {"parked": len(parked), "ended": _ended}
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _close(fails: bool) -> None:
    _ended.append("closed")
    if fails:
        raise RuntimeError("as asked")


def _chunks(query: dict[str, str]) -> Generator[bytes]:
    try:
        yield b"begin\n"
        for _ in range(int(query.get("times", 1))):
            yield IDLE
            yield b"more\n"
        if "fails" in query:
            raise RuntimeError("as asked")
        for _ in range(int(query.get("long", 0))):
            yield LONG
    finally:
        _ended.append("generator")
