"""The timeline of a thread: its messages, and its runs with their turns, as people see them.

It is read from the newest entry backward. What runs have done is folded from their events, which
are read in parts of bounded size; the answers of runs that are gone are still there as messages.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row, case, func, select

from arkloop.shared.actors import Actor
from arkloop.shared.events import types
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.turns import SUPERFLUOUS_TYPES, Turns
from arkloop.shared.runs.places import SLOT
from arkloop.shared.runs.queries import QUEUE_POSITION
from arkloop.shared.storage.arrays import plain_array
from arkloop.shared.storage.pages import PAGE_BYTES
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import FIRST_WAITING, runs
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.threads import threads

#: Limits on the events that are read at once.
READ_EVENTS = 2_000
READ_BYTES = 1024 * 1024
_END = 2**62
_PLACES = statement(__package__, "timeline_places")
_READ_TURNS = statement(__package__, "read_turns")

_LAST_SEQ = select(func.coalesce(func.max(run_events.c.seq), 0)).where(
    run_events.c.run_id == runs.c.id
)
#: The last event of all but the turn that is not finished.
_TURN_SEQ = (
    select(run_events.c.seq)
    .where(run_events.c.run_id == runs.c.id, run_events.c.type == types.MessageCompleted.type)
    .order_by(run_events.c.seq.desc())
    .limit(1)
)
_next = runs.alias("next")
#: A retry supersedes all runs of its round at one time, and comes after them. So does a rollback.
_RETRIED_BY = (
    select(_next.c.id)
    .where(
        _next.c.thread_id == runs.c.thread_id,
        _next.c.position > runs.c.position,
        _next.c.superseded_at.is_distinct_from(runs.c.superseded_at),
    )
    .order_by(_next.c.position)
    .limit(1)
)
#: A run that was interrupted names another one, too, but stays in the thread: only a later retry
#: replaces it, and that replaces the named run as well.
_SUPERSEDED_BY = case(
    (
        runs.c.superseded_at.is_not(None),
        func.coalesce(_RETRIED_BY.scalar_subquery(), runs.c.superseded_by),
    )
)
_RUNS = select(
    *(column for column in runs.c if column.key not in ("options", "superseded_by")),
    # In one statement with the state, so that both are of one moment.
    _LAST_SEQ.scalar_subquery().label("last_seq"),
    func.coalesce(_TURN_SEQ.scalar_subquery(), 0).label("turn_seq"),
    _SUPERSEDED_BY.label("superseded_by"),
    QUEUE_POSITION,
    messages.c.id.label("message_id"),
).outerjoin(messages, messages.c.run_id == runs.c.id)


class Place(NamedTuple):
    """A place in a timeline: before the entry at a position, or before a turn of the run there."""

    position: int
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A message, or a run with its turns from `turns.first` on; `row` has its columns."""

    row: Row[Any]
    turns: Turns | None = None

    @property
    def place(self) -> Place:
        """The place before what the entry has."""
        return Place(self.row.position, self.turns.first if self.turns is not None else 0)


class Newest(NamedTuple):
    """A run of a thread, and the number of its last event, 0 without any."""

    run_id: UUID
    seq: int


class Timeline(NamedTuple):
    """A page of entries, the newest first; older ones are before `end`, None if there are none.

    `newest` is where the thread's stream continues: at its active run, or else at its last one, as
    the entries have it. None without such a run, and on all pages but the first.
    """

    entries: Sequence[Entry]
    end: Place | None
    newest: Newest | None = None


def read(
    sql: Connection, actor: Actor, thread_id: UUID, *, limit: int, before: Place | None
) -> Timeline:
    """Read the newest entries before a place: at most `limit`, of together about `PAGE_BYTES`.

    A run with larger turns has the last ones of them, and its other ones are on the next page.

    Raises:
        ThreadNotFound
    """
    thread = threads.get(sql, actor, thread_id)
    if before is None:
        page = _read(sql, thread_id, limit, Place(_END))
        newest = _newest(sql, thread, page.entries)
        if newest is not None and not _runs_of(page.entries):
            # It may have begun after the entries were read, and its stream would not begin with it.
            page = _read(sql, thread_id, limit, Place(_END))
            newest = next(iter(_runs_of(page.entries)), newest)
        return page._replace(newest=newest)
    return _read(sql, thread_id, limit, before)


def _read(sql: Connection, thread_id: UUID, limit: int, before: Place) -> Timeline:
    # The rest of a run that is shown in parts is on this page.
    position = before.position + 1 if before.turn else before.position
    given = {"thread_id": thread_id, "before": position, "slot": SLOT}
    found = sql.exec_driver_sql(_places(limit + 1), given | {"first_waiting": FIRST_WAITING})
    places = found.all()
    wanted = _fitting(places[:limit])
    rows = _rows(sql, wanted)
    entries: list[Entry] = []
    size = 0
    in_order = [rows[place.run_id] for place in wanted if place.run_id in rows]
    folded = _folded(sql, in_order, before)
    for place in wanted:
        if (row := rows.get(place.run_id or place.message_id)) is None:
            continue  # retention has deleted it since
        entry = Entry(row) if place.run_id is None else Entry(row, next(folded))
        entries.append(entry)
        size += entry.turns.size if entry.turns is not None else place.size
        if size > PAGE_BYTES or entry.place.turn:
            break
    if not entries:
        return Timeline((), Place(wanted[-1].position) if wanted else None)
    last = entries[-1].place
    return Timeline(entries, last if last.turn or last.position > places[-1].position else None)


def _newest(sql: Connection, thread: Row[Any], entries: Sequence[Entry]) -> Newest | None:
    """Return the run that is active, or else the last one, as it is shown."""
    active: UUID | None = thread.active_run_id
    shown = _runs_of(entries)
    if active is None and shown:
        return shown[0]
    for run in shown:
        if run.run_id == active:
            return run
    last = runs.c.id == active if active else runs.c.position < FIRST_WAITING
    found = sql.execute(
        select(runs.c.id, _LAST_SEQ.scalar_subquery().label("last_seq"))
        .where(runs.c.thread_id == thread.id, last)
        .order_by(runs.c.position.desc())
        .limit(1)
    ).one_or_none()
    return None if found is None else Newest(*found)


def _runs_of(entries: Sequence[Entry]) -> list[Newest]:
    """Return the runs among entries that do not wait for their thread."""
    return [
        Newest(entry.row.id, entry.row.last_seq)
        for entry in entries
        if entry.turns is not None and entry.row.position < FIRST_WAITING
    ]


@lru_cache(maxsize=200)
def _places(limit: int) -> str:
    # Literal: of a limit that it does not know Postgres thinks that it is a tenth of the table.
    return _PLACES.replace("(limit)", str(int(limit)))


def _fitting(places: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Return the first places, whose messages have at most about `PAGE_BYTES`."""
    fitting: list[Row[Any]] = []
    size = 0
    for place in places:
        fitting.append(place)
        size += place.size
        if size > PAGE_BYTES:
            break
    return fitting


def _rows(sql: Connection, places: Sequence[Row[Any]]) -> Mapping[UUID, Row[Any]]:
    """Return the rows of messages and runs by their ids."""
    of_runs = [place.run_id for place in places if place.run_id is not None]
    of_messages = [place.message_id for place in places if place.message_id is not None]
    rows: list[Row[Any]] = []
    if of_runs:
        rows.extend(sql.execute(_RUNS.where(runs.c.id.in_(of_runs))))
    if of_messages:
        rows.extend(sql.execute(select(messages).where(messages.c.id.in_(of_messages))))
    return {row.id: row for row in rows}


def _folded(sql: Connection, of: Sequence[Row[Any]], before: Place) -> Iterator[Turns]:
    """Yield the turns of each of the runs. No more is read than is asked for, or some more."""
    events = _events(sql, of)
    event = next(events, None)
    for number, run in enumerate(of):
        is_rest = run.position == before.position and before.turn > 0
        turns = Turns(before=before.turn if is_rest else None, most_bytes=PAGE_BYTES)
        while event is not None and event[0] == number:
            turns.add(event[1])
            event = next(events, None)
        yield turns


def _events(sql: Connection, of: Sequence[Row[Any]]) -> Iterator[tuple[int, StoredEvent]]:
    """Yield the events of the runs in their order, each with the run's place in `of`."""
    first, after_seq = 0, 0
    while first < len(of):
        group = _group(of, first, after_seq)
        after_seqs = [after_seq] + [0] * (len(group) - 1)
        rows = sql.exec_driver_sql(
            _READ_TURNS,
            {
                "ids": plain_array(run.id for run in group),
                "after_seqs": plain_array(after_seqs),
                "upto_seqs": plain_array(run.last_seq for run in group),
                "turn_seqs": plain_array(run.turn_seq for run in group),
                "superfluous": list(SUPERFLUOUS_TYPES),
                "most_events": READ_EVENTS,
                "most_bytes": READ_BYTES,
            },
        ).all()
        for row in rows:
            place = first + row.number - 1
            yield place, StoredEvent(row.seq, row.type, row.payload)
        # The last event of a run is never left out, unless retention has deleted it.
        is_read = not rows or (rows[-1].number == len(group) and rows[-1].seq == group[-1].last_seq)
        if is_read:
            first, after_seq = first + len(group), 0
        else:
            first, after_seq = first + rows[-1].number - 1, rows[-1].seq


def _group(of: Sequence[Row[Any]], first: int, after_seq: int) -> Sequence[Row[Any]]:
    """Return runs from `first` on that have together at most `READ_EVENTS`, at least one."""
    left = READ_EVENTS - (of[first].last_seq - after_seq)
    last = first + 1
    while last < len(of) and left >= of[last].last_seq:
        left -= of[last].last_seq
        last += 1
    return of[first:last]
