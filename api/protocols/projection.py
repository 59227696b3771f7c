"""The seam for protocols of other projects: a run's events, folded into their frames.

A projection is a pure function of the stored events, so a replay is a fold from event 1 and gives
the same frames at any time. A cursor is a number of frames to leave out, or a seq in `id:` lines;
the server keeps no state for it.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any, Protocol
from uuid import UUID

from flask import Response, request
from sqlalchemy import Connection

from arkloop.api.endpoints.following import hub, streaming, watch_of
from arkloop.api.http.current import connections
from arkloop.api.streaming import sse
from arkloop.api.streaming.stream_pages import PIECE_BYTES, Page
from arkloop.api.streaming.watch import Watch
from arkloop.shared.actors import Actor
from arkloop.shared.errors import EventsLost
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import StoredEvent

#: Events of a run that are read, and applied, at once.
_PAGE_EVENTS = 2_000


class Projection(Protocol):
    """A fold of one run's events, from the first on, into the frames of one protocol.

    Each stream has an instance of its own. It does no I/O and reads no clock.
    """

    #: True from the event on that ends the stream: the terminal event does without it, but a
    #: protocol may end a response where the run waits for its client.
    is_over: bool

    def frames(self, event: Mapping[str, Any]) -> Iterable[bytes]:
        """Return what becomes of the event `{seq, type, data, created_at}`: whole SSE frames."""
        ...

    def closing(self) -> Iterable[bytes]:
        """Return the frames after the last event, `data: [DONE]` for example."""
        ...


def arguments_text(arguments: Any) -> str:
    """Return the arguments of a call as JSON text, which is what clients parse."""
    if isinstance(arguments, str):
        return arguments  # the model's text, which was no JSON object
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))


def projected(
    run_id: UUID,
    reader: Actor,
    projection: Projection,
    *,
    skip: int = 0,
    opening: Sequence[bytes] = (),
    beyond: bytes = b"",
    headers: Mapping[str, str] = MappingProxyType({}),
    is_new: bool = False,
    on_leave: Callable[[], None] = lambda: None,
    after_seq: int = 0,
) -> Response:
    """Return a response that streams the run after this event, without its first `skip` frames.

    `opening` are the frames before those. `beyond` are those before the closing ones where there is
    no frame after the first `skip`: the client's are of something else. It is sent as soon as that
    is certain, and without it the client waits. `is_new` spares the lookup of a run that this
    request has created.

    Raises:
        RunNotFound: there is none that the reader sees.
        EventsLost, Unavailable
    """
    until = last_seq = None
    if not is_new:
        head = hub().heads.get_seen(run_id, reader)
        _check_holes(run_id, projection, after_seq)
        last_seq = head.last_seq
        until = None if head.ended_at is None else last_seq
    if request.method == "HEAD":
        response = Response(iter(()), headers=sse.HEADERS)
    else:
        watch = watch_of(run_id, reader, cursor=after_seq, until=until, last_seq=last_seq)
        response = streaming(
            watch,
            opening=sse.HELLO + b"".join(opening[skip:]),
            on_leave=on_leave,
            pieces=Pieces(watch, projection, max(0, skip - len(opening)), beyond),
        )
    response.headers.update(headers)
    return response


def _check_holes(run_id: UUID, projection: Projection, after_seq: int) -> None:
    """Refuse a stream that would be broken off at a known hole, whatever its cursor.

    Its client would come back with the same cursor, or one that names no event, without end.

    Raises:
        EventsLost, Unavailable
    """
    if hub().holes.first(run_id) is None:
        return
    with connections().reading() as sql:  # one that is over before the hole is whole
        fold(sql, deepcopy(projection), run_id, after_seq)


def fold(
    sql: Connection,
    projection: Projection,
    run_id: UUID,
    after_seq: int = 0,
    *,
    skips_lost: bool = False,
) -> int:
    """Apply the run's stored events after this one to the projection, until it is over; returns the
    number of the last event.

    Raises:
        EventsLost: the next event is missing, with later ones stored; not if it `skips_lost`.
    """
    while not projection.is_over:
        page = event_log.read_table(sql, run_id, after_seq, _PAGE_EVENTS)
        for event in page:
            if event.seq != after_seq + 1 and not skips_lost:
                raise EventsLost(after_seq=[after_seq])
            for _ in projection.frames(json.loads(event.payload)):
                pass
            after_seq = event.seq
            if projection.is_over:
                break
        if len(page) < _PAGE_EVENTS:
            break
    return after_seq


def read_events(*run_ids: UUID) -> Iterator[tuple[UUID, list[StoredEvent]]]:
    """Yield the stored events of these runs, one run after another, each in one list or more.

    No connection is held while the caller works on them. One is lent for each page of events, of
    however many runs these are, as each loan can be refused.

    Raises:
        Unavailable
    """
    left = deque(run_ids)
    after_seq = 0
    while left:
        page: list[tuple[UUID, list[StoredEvent]]] = []
        room = _PAGE_EVENTS
        with connections().reading() as sql:
            while left and room:
                events = event_log.read_table(sql, left[0], after_seq, room)
                page.append((left[0], events))
                room -= len(events)
                if room:  # these were the run's last ones
                    left.popleft()
                    after_seq = 0
                else:
                    after_seq = events[-1].seq
        yield from page


class Pieces:
    """The pieces of a projected stream, made from the pages of its watch."""

    __slots__ = ("_beyond", "_projection", "_skip", "_watch")

    def __init__(
        self, watch: Watch, projection: Projection, skip: int, beyond: bytes = b""
    ) -> None:
        self._watch = watch
        self._projection = projection
        self._skip = skip  # frames to leave out
        self._beyond = beyond if skip else b""

    def __call__(self, page: Page) -> Iterator[bytes]:
        piece = bytearray()
        for frame in frames_of(page.parsed(), self._projection):
            if self._skip:
                self._skip -= 1
                continue
            self._beyond = b""
            piece += frame
            if len(piece) >= PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
        if self._projection.is_over or page.ended or self._is_beyond(page):
            piece += self._beyond + b"".join(self._projection.closing())
            self._watch.end()
        if piece:
            yield bytes(piece)

    def _is_beyond(self, page: Page) -> bool:
        """Return whether frames are left out beyond those that there were when the stream began."""
        known = self._watch.last_seq or 0
        return bool(self._beyond) and self._skip > 0 and page.last_seq >= known


def frames_of(events: Iterable[Mapping[str, Any]], projection: Projection) -> Iterator[bytes]:
    """Yield the frames of events, up to the one that ends the stream."""
    for event in events:
        yield from projection.frames(event)
        if projection.is_over:
            return
