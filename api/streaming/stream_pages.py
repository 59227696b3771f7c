"""Pages of a run's event stream: frames of Server-Sent Events (WHATWG HTML, 9.2), ready to be sent.

A frame is one `data:` line, then `id:`, then an empty line. The id comes last:
clients that move their cursor when they read it would lose the event if the
connection broke inside a frame that has it first. Payloads pass through as the
bytes that Redis has, or are put into frames by Postgres: only projections parse them.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from redis import ResponseError
from sqlalchemy import Connection

from arkloop.shared.errors import EventsLost
from arkloop.shared.events.types import TERMINAL_TYPES
from arkloop.shared.storage.keys import Keys

#: Limits on the events and bytes of one page: what is held for a
#: client that does not take it.
PAGE_EVENTS = 2_000
PAGE_BYTES = 131_072
#: A page from Redis is bound by count alone; from the second on it follows the events' size.
FIRST_PAGE_EVENTS = 16
#: No frame and no empty line: some clients would take those for an empty event.
PING = b": ping\n"
#: Written at once at most, so that a slow client is seen to make progress.
PIECE_BYTES = 32_768

# The payloads' sizes are summed before any payload is looked at, so that what is beyond the
# page's bytes is not even read from where Postgres keeps long values.
_PAGE = """
SELECT string_agg(
        CASE WHEN %(named)s THEN 'event: ' || type || E'\\n' ELSE '' END
            || 'data: ' || payload || E'\\nid: ' || seq || E'\\n\\n',
        '' ORDER BY seq
    ),
    max(seq), count(*), bool_or(type = ANY(%(terminal)s))
FROM (
    SELECT seq, type, payload,
        sum(octet_length(payload)) OVER (ORDER BY seq) - octet_length(payload) AS before
    FROM (
        SELECT seq, type, payload FROM run_events
        WHERE run_id = %(run_id)s AND seq > %(after_seq)s ORDER BY seq LIMIT %(limit)s
    ) AS next
) AS measured
WHERE before < %(most_bytes)s
"""
_CONTIGUOUS = """
SELECT count(*) FROM (
    SELECT seq, row_number() OVER (ORDER BY seq) AS number FROM (
        SELECT seq FROM run_events
        WHERE run_id = %(run_id)s AND seq > %(after_seq)s ORDER BY seq LIMIT %(limit)s
    ) AS next
) AS numbered
WHERE seq = %(after_seq)s + number
"""
# Frames whose payload is on one line and has the number of the frame, and the type of a named one.
_FRAMES = re.compile(rb'(?:data: \{"seq":(\d+),"type":"[^"\n]*",[^\n]*\nid: \1\n\n)*')
_NAMED_FRAMES = re.compile(
    rb'(?:event: ([^\n]*)\ndata: \{"seq":(\d+),"type":"\1",[^\n]*\nid: \2\n\n)*'
)
_TYPE = re.compile(rb'"type":"([^"]*)"')


class Page(NamedTuple):
    """The frames of `events` events up to `last_seq`; if `ended`, that is the terminal event.

    The same bytes are sent to all who read from the same cursor.
    """

    data: bytes
    last_seq: int
    events: int
    ended: bool

    @property
    def next_limit(self) -> int:
        """The number of events to read next, if they are as long as these."""
        return max(1, min(PAGE_EVENTS, PAGE_BYTES * self.events // len(self.data)))

    @property
    def last_type(self) -> str:
        """The type of the last event."""
        found = _TYPE.search(self.data, self.data.rfind(b'data: {"seq":'))
        assert found is not None
        return found[1].decode()

    def parsed(self) -> Iterator[dict[str, Any]]:
        """Yield the events of a page without names."""
        for line in self.data.split(b"\n"):
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    def pieces(self) -> Iterator[bytes]:
        """Yield pieces of at most `PIECE_BYTES`: whole frames, or a part of a longer frame."""
        data, start = self.data, 0
        while len(data) - start > PIECE_BYTES:
            # A payload has no line ends: an empty line ends a frame.
            end = data.rfind(b"\n\n", start, start + PIECE_BYTES) + 2
            if end < 2:
                end = start + PIECE_BYTES
                while data[end] & 0xC0 == 0x80:  # inside of a character
                    end -= 1
            yield data[start:end]
            start = end
        if start < len(data):
            yield data[start:] if start else data


class News:
    """Events of a run that a notification has brought along, as `event_log.news_of` writes them."""

    def __init__(self, after_seq: int, payloads: bytes) -> None:
        self.after_seq = after_seq
        self._payloads = payloads
        self._pages: dict[bool, Page | None] = {}

    def page(self, *, named: bool) -> Page | None:
        """Return their page, which all clients at `after_seq` share; None if they are no events."""
        if named not in self._pages:
            frames: list[bytes] = []
            for seq, payload in enumerate(self._payloads.split(b"\n"), self.after_seq + 1):
                kind = _TYPE.search(payload)
                frames.append(frame(seq, kind[1] if kind else b"", payload, named=named))
            self._pages[named] = _of_frames(frames, self.after_seq, named)
        return self._pages[named]


def from_streams(
    redis: Any, keys: Keys, reads: Sequence[tuple[UUID, int, int]], named: Sequence[bool]
) -> list[Page | None]:
    """Read from Redis what directly follows each cursor, in one round trip; None where nothing
    does.

    A read is (run, after_seq, limit). `redis` does not decode.

    Raises:
        redis.exceptions.RedisError: Redis is out of reach.
    """
    pipeline = redis.pipeline(transaction=False)
    for run_id, after_seq, limit in reads:
        pipeline.execute_command(
            "XRANGE", keys.events(run_id), f"{after_seq + 1}-0", "+", "COUNT", limit
        )
    answers = pipeline.execute(raise_on_error=False)
    return [
        # A key of another type, say: this run's events come from Postgres.
        None if isinstance(answer, ResponseError) else _page(answer, after_seq, of_names)
        for (_, after_seq, _), of_names, answer in zip(reads, named, answers, strict=True)
    ]


def _page(entries: Sequence[Any], after_seq: int, named: bool) -> Page | None:
    """Make a page of the entries that directly follow the cursor, as far as `event_log` wrote them.

    Another program may have written to the stream. Whole pages are checked, not single entries:
    this is most of what an event costs a web process.
    """
    frames: list[bytes] = []
    size = 0
    seq = after_seq
    with contextlib.suppress(ValueError):  # an entry with other fields
        for entry_id, (_, kind, _, payload) in entries:
            # The stream may have been trimmed or lost, or a publish dropped.
            if entry_id != b"%d-0" % (seq + 1) or size >= PAGE_BYTES:
                break
            seq += 1
            frames.append(frame(seq, kind, payload, named=named))
            size += len(payload)
    return _of_frames(frames, after_seq, named)


def _of_frames(frames: list[bytes], after_seq: int, named: bool) -> Page | None:
    """Make a page of the frames up to the first that is none of `event_log`'s events."""
    data = b"".join(frames)
    valid = (_NAMED_FRAMES if named else _FRAMES).match(data)
    assert valid is not None  # it matches no frame, too
    if valid.end() < len(data):
        data = data[: valid.end()]
        del frames[data.count(b"\n\n") :]
    if not frames:
        return None
    page = Page(data, after_seq + len(frames), len(frames), ended=False)
    return page._replace(ended=page.last_type in TERMINAL_TYPES)


def frame(seq: int, kind: bytes, payload: bytes, *, named: bool) -> bytes:
    """Encode the event as one frame."""
    if named:
        return b"event: %b\ndata: %b\nid: %d\n\n" % (kind, payload, seq)
    return b"data: %b\nid: %d\n\n" % (payload, seq)


def from_table(
    sql: Connection, run_id: UUID, after_seq: int, limit: int, *, named: bool
) -> Page | None:
    """Read from Postgres what follows the cursor; None if nothing does.

    Raises:
        EventsLost: it has later events, but not the next one.
    """
    data, last_seq, count, ended = sql.exec_driver_sql(
        _PAGE,
        {
            "named": named,
            "run_id": run_id,
            "after_seq": after_seq,
            "limit": limit,
            "most_bytes": PAGE_BYTES,
            "terminal": list(TERMINAL_TYPES),
        },
    ).one()
    if count and last_seq != after_seq + count:
        before_hole = _contiguous(sql, run_id, after_seq, limit)
        if not before_hole:
            raise EventsLost(after_seq=[after_seq])
        return from_table(sql, run_id, after_seq, before_hole, named=named)
    return Page(data.encode(), last_seq, count, ended) if count else None


def _contiguous(sql: Connection, run_id: UUID, after_seq: int, limit: int) -> int:
    """Count the events that follow the cursor without a hole."""
    parameters = {"run_id": run_id, "after_seq": after_seq, "limit": limit}
    return int(sql.exec_driver_sql(_CONTIGUOUS, parameters).scalar_one())
