"""The part of a request that follows a run, for the endpoints that do."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from flask import Response, current_app, g, request

from arkloop.api.auth.bearer import authenticator
from arkloop.api.http.current import actor
from arkloop.api.http.described import Frames
from arkloop.api.http.parking import ParkableBody
from arkloop.api.streaming import sse
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.stream_pages import Page
from arkloop.api.streaming.stream_slots import StreamSlots
from arkloop.api.streaming.watch import Watch
from arkloop.shared.actors import Actor

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

EVENT_STREAM = "text/event-stream"


class EventFrames(Frames):
    """Server-Sent Events: `data:` is an `Event` in one line, `id:` its `seq`."""


def hub() -> StreamHub:
    return cast(StreamHub, current_app.extensions["arkloop.hub"])


def is_event_source() -> bool:
    """Return whether a browser's own EventSource sends this request, which ignores empty events.

    Its headers can also be those of a `fetch` without a cache. Only EventSource has a reason to
    open a stream by a ticket alone; with `Last-Event-ID` it resumes, perhaps through a proxy that
    adds the credentials.
    """
    headers = request.headers
    if "no-cache" not in headers.get("Cache-Control", ""):
        return False
    has_ticket = "ticket" in request.args and "Authorization" not in headers
    return "Last-Event-ID" in headers or (has_ticket and headers.get("Accept") == EVENT_STREAM)


def reserve_stream() -> None:
    """Take the slot of the stream that this request is going to open.

    Call it before anything is created for it: the caller must not get a 429 for a run that exists.

    Raises:
        StreamLimitExceeded
    """
    if "stream_slot" not in g:
        g.stream_slot = stream_slots().take(actor())


def stream_slots() -> StreamSlots:
    """Return this process's slots of streams."""
    return cast(StreamSlots, current_app.extensions["arkloop.stream_slots"])


def free_unused_slot(_error: BaseException | None = None) -> None:
    """Give back the slot of a request that has opened no stream after all."""
    if (slot := g.pop("stream_slot", None)) is not None:
        slot.free()


class _StreamResponse(Response):
    """A response whose body is closed without it: it would be kept as long as its stream."""

    def get_app_iter(self, environ: "WSGIEnvironment") -> Iterable[bytes]:
        return cast(ParkableBody, self.response)


def watch_of(run_id: UUID, reader: Actor, **how: Any) -> Watch:
    """Return the watch of this request's client; `how` are arguments of `Watch`."""
    return Watch(
        run_id,
        shared(reader),
        connection=request.environ.get("gunicorn.socket"),
        may_read=authenticator().still_valid,
        **how,
    )


def streaming(
    watch: Watch,
    opening: bytes = sse.HELLO,
    on_leave: Callable[[], None] = lambda: None,
    pieces: Callable[[Page], Iterator[bytes]] = Page.pieces,
    follow_on: Callable[[], bytes | None] | None = None,
) -> Response:
    """Return a response that streams the run's events, as `pieces` makes them of its pages.

    Raises:
        StreamLimitExceeded: unless `reserve_stream` has taken a slot for it.
    """
    slot = g.pop("stream_slot") if "stream_slot" in g else stream_slots().take(watch.reader)
    frames = sse.stream(hub(), watch, request.environ, opening, on_leave, pieces, follow_on)
    body = ParkableBody(frames, watch, None if slot is None else slot.free)
    return _StreamResponse(body, headers=sse.HEADERS, direct_passthrough=True)


@lru_cache(4096)
def shared(reader: Actor) -> Actor:
    """Return one shared object for all streams and polls of an actor, which may be thousands."""
    return reader
