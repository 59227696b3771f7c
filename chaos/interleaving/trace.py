"""A trace of the real system: the rows of a thread after each commit, as a state of the model.

Each step must be what the table says, and break no invariant of the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from arkloop.shared.runs import thread_queue
from arkloop.shared.runs.thread_queue import MAX_WAITING, Happening, OnBusy
from chaos.model import promises
from chaos.model.busy_thread import (
    ACTIVE,
    CANCELLED,
    ENDED,
    NOBODY,
    PENDING,
    SCHEDULED,
    Process,
    Run,
    Thread,
    Tx,
)
from chaos.model.effects import Case, Table, carry_out, find
from chaos.model.life import Life, live

_ROWS = """
SELECT r.id, r.state, r.cancel_requested_at IS NOT NULL AS cancel, r.has_followers, r.superseded_by,
    r.superseded_at IS NOT NULL AS is_discarded, r.position, r.created_by_user_id, r.fence,
    CASE WHEN r.state IN ('pending', 'scheduled') THEN (
        SELECT count(*) FROM messages m WHERE m.thread_id = r.thread_id
            AND m.position > r.position - 1024 AND m.position < r.position
    ) END AS messages,
    EXISTS (
        SELECT FROM messages m WHERE m.run_id = r.id AND m.superseded_at IS NULL
    ) AS is_shown
FROM runs r WHERE r.thread_id = %s
"""
#: The final verdict looks at messages by their texts.
_OF_STATES = {
    name: promise
    for name, promise in promises.of_states(MAX_WAITING).items()
    if name not in ("one run for each message", "no deadlock")
}


class Doing(NamedTuple):
    """The work of an actor: a word for people, and what it is to the table."""

    what: str
    client: int = NOBODY
    on_busy: OnBusy | None = None
    is_later: bool = False
    run_id: UUID | None = None

    def __str__(self) -> str:
        return self.what


@dataclass(slots=True)
class Trace:
    """The states of one thread; `faults` are broken invariants, and steps that no rule explains."""

    sql: Connection
    thread_id: UUID
    users: tuple[UUID, UUID]
    faults: list[str] = field(default_factory=list)
    steps: int = 0  # that were compared with the table
    rules: set[str] = field(default_factory=set)  # that have explained one
    _ids: list[UUID] = field(default_factory=list)  # of runs, in the order of their acceptance
    _now: Thread = field(default_factory=Thread)

    def look(self, doing: Doing, *, may_be_two: bool) -> None:
        """Compare the state with the one before; `may_be_two` steps are not compared."""
        before = self._now
        after = self._read(doing)
        if after == before:
            return
        self._now = after
        self._check_states(after, doing)
        if may_be_two:
            return
        self.steps += 1
        if doing.what == LEFT:
            self.faults.append(f"no lost wake-up: {before} had to be started by the sweep")
            return
        self._check_moves(before, doing, after)
        self._check_table(before, doing, after)

    @property
    def thread(self) -> Thread:
        return self._now

    def _read(self, doing: Doing) -> Thread:
        rows = {row.id: row for row in self.sql.exec_driver_sql(_ROWS, (self.thread_id,))}
        known = len(self._ids)
        self._ids += sorted(rows.keys() - {*self._ids})
        number = {run_id: at for at, run_id in enumerate(self._ids)}
        tickets = self._now.tickets
        runs = []
        for at, run_id in enumerate(self._ids):
            row = rows[run_id]
            old = self._now.runs[at] if at < known else None
            is_due = old is not None and old.state == SCHEDULED and row.state == PENDING
            if old is None or is_due:
                ticket, tickets = tickets, tickets + 1
            else:
                ticket = old.ticket
            count = row.messages if row.messages is not None else len(old.messages) if old else 1
            goes_ahead = old.goes_ahead if old else row.state == PENDING and doing.on_busy in _AHEAD
            runs.append(
                Run(
                    row.state,
                    self.users.index(row.created_by_user_id),
                    tuple(range(count)),
                    ticket,
                    goes_ahead,
                    row.has_followers,
                    row.cancel,
                    number.get(row.superseded_by, NOBODY),
                    fence=row.fence,
                    is_discarded=row.is_discarded,
                    is_shown=row.is_shown,
                )
            )
        queue = sorted(
            (at for at, run in enumerate(runs) if run.state == PENDING),
            key=lambda at: rows[self._ids[at]].position,
        )
        accepted = self._now.accepted + (doing.what == "create" and _has_more(self._now.runs, runs))
        return Thread(tuple(runs), tuple(queue), accepted=accepted, tickets=tickets)

    def _check_states(self, after: Thread, doing: Doing) -> None:
        for name, promise in _OF_STATES.items():
            if why := promise(after):
                self.faults.append(f"{name}: {why}, after {doing}")

    def _check_moves(self, before: Thread, doing: Doing, after: Thread) -> None:
        """Check the invariants of moves, with the actor's transaction as the model has it."""
        does = "cancel" if "cancel" in doing.what else "end" if doing.client == NOBODY else "create"
        acting = max(doing.client, 0)
        on_busy = "" if doing.is_later else doing.on_busy or ""
        tx = Tx(does, "write", on_busy=on_busy)
        idle = (Process(), Process())
        busy = (*idle[:acting], Process(tx=tx), *idle[acting + 1 :])
        for name, promise in promises.OF_MOVES.items():
            label = f"{doing.what} answers" if doing.what == "answer" else doing.what
            if why := promise(
                before._replace(processes=busy), f" {label} ", after._replace(processes=idle)
            ):
                self.faults.append(f"{name}: {why}, by {doing}")

    def _check_table(self, before: Thread, doing: Doing, after: Thread) -> None:
        """Look for the rule that explains the step."""
        table = Table(thread_queue.RULES, max_waiting=MAX_WAITING)
        tried = []
        for happening, case in self._cases(before, doing, after):
            try:
                name, made = _make(table, before, happening, case)
            except (LookupError, ValueError) as error:
                tried.append(repr(error))
                continue
            if _seen(made) == _seen(after):
                self.rules.add(name)
                return
            tried.append(f"{name} would make {made}")
        self.faults.append(f"no rule explains {doing}: {before} became {after}; {'; '.join(tried)}")

    def _cases(
        self, before: Thread, doing: Doing, after: Thread
    ) -> Iterator[tuple[Happening | Life, Case]]:
        """Yield what the step may be to the table."""
        target = self._ids.index(doing.run_id) if doing.run_id in self._ids else NOBODY
        if doing.what == "create":
            yield Happening.CREATE, Case(doing.client, doing.on_busy, doing.is_later)
            return
        changed = [
            number
            for number, run in enumerate(before.runs)
            if (run.state, run.cancel) != (after.runs[number].state, after.runs[number].cancel)
        ]
        for number in {target} - {NOBODY} or changed:
            run, now = before.runs[number], after.runs[number]
            if run.state in (PENDING, SCHEDULED):
                yield Happening.DUE, Case(on_busy=OnBusy.ENQUEUE, run=number)
                yield Happening.CANCEL_WAITING, Case(run=number)
            elif now.state in ENDED:
                yield Happening.END, Case(run=number, end=now.state)
                yield Happening.CANCEL_ACTIVE, Case(run=number, end=CANCELLED)
            elif run.state in ACTIVE:
                for happening in (Happening.CANCEL_ACTIVE, *Life):
                    yield happening, Case(run=number)


#: The sweep's look for threads that an earlier release has left: there must be none.
LEFT = "start what was left"
_AHEAD = (OnBusy.INTERRUPT, OnBusy.ROLLBACK)


def _has_more(before: Sequence[Run], after: Sequence[Run]) -> bool:
    """Return whether a run was created, or a message has joined one."""
    pairs = zip(before, after, strict=False)
    joined = any(len(new.messages) > len(old.messages) for old, new in pairs)
    return joined or len(after) > len(before)


def _make(
    table: Table, before: Thread, happening: Happening | Life, case: Case
) -> tuple[str, Thread]:
    """Return the name of what the model would do, and its result. Raises: LookupError."""
    if isinstance(happening, Life):
        return happening.value, live(before, happening)
    rule = find(table, before, happening, case)
    return rule.name, carry_out(table, before, rule, case)


def _seen(thread: Thread) -> Any:
    """Return what is compared: flags and wishes of runs that have ended mean nothing."""
    runs = [
        (
            run.state,
            len(run.messages) if run.state in (PENDING, SCHEDULED) else 0,
            run.superseded_by,
            run.is_discarded,
            *((run.cancel, run.has_followers) if run.state not in ENDED else ()),
        )
        for run in thread.runs
    ]
    return runs, thread.queue
