"""A trace of the real system: the rows of a thread after each commit, as a state of the model.

Each step must be what the table says, and break no invariant of the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Cursor

from arkloop.shared.runs import thread_queue
from arkloop.shared.runs.thread_queue import Happening, OnBusy
from chaos.model import promises
from chaos.model.busy_thread import (
    ACTIVE,
    CANCELLED,
    ENDED,
    NOBODY,
    PENDING,
    SCHEDULED,
    Offer,
    Process,
    Run,
    Thread,
    Tx,
)
from chaos.model.effects import Case, Table, carry_out, find
from chaos.model.life import Life, live

_ROWS = """
SELECT r.id, false AS is_offer, r.state, r.cancel_requested_at IS NOT NULL AS cancel,
    r.has_followers, r.superseded_by, r.superseded_at IS NOT NULL AS is_discarded, r.position,
    r.created_by_user_id, r.fence,
    CASE WHEN r.state IN ('pending', 'scheduled') THEN (
        SELECT count(*) FROM messages m WHERE m.thread_id = r.thread_id
            AND m.position > r.position - 1024 AND m.position < r.position
    ) END AS messages,
    EXISTS (
        SELECT FROM messages m WHERE m.run_id = r.id AND m.superseded_at IS NULL
    ) AS is_shown,
    (SELECT count(*) FROM run_events e WHERE e.run_id = r.id AND e.type = 'run.steered') AS steered
FROM runs r WHERE r.thread_id = %(thread_id)s
-- A message is offered until the event of its delivery is stored.
UNION ALL
SELECT o.run_id, true, NULL, false, false, NULL, false, o.position, o.created_by_user_id, 0, 1,
    false, 0
FROM offered_messages o WHERE o.thread_id = %(thread_id)s AND NOT EXISTS (
    SELECT FROM run_events e WHERE e.run_id = o.active_run_id AND e.type = 'run.steered'
        AND e.payload::jsonb #>> '{data,message_id}' = o.message_id::text
)
"""
#: The final verdict looks at messages by their texts.
_OF_VERDICT = ("one run for each message", "no deadlock")


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

    cursor: Cursor[Any]
    thread_id: UUID
    users: tuple[UUID, UUID]
    max_waiting: int
    faults: list[str] = field(default_factory=list)
    steps: int = 0  # that were compared with the table
    rules: set[str] = field(default_factory=set)  # that have explained one
    _ids: list[UUID] = field(default_factory=list)  # of runs, in the order of their acceptance
    _tickets: dict[UUID, int] = field(default_factory=dict)  # of offered messages
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
        self._check_moves(before, doing, after)
        self._check_table(before, doing, after)

    @property
    def thread(self) -> Thread:
        return self._now

    def _read(self, doing: Doing) -> Thread:
        found = self.cursor.execute(_ROWS, {"thread_id": self.thread_id}, prepare=True).fetchall()
        rows = {row.id: row for row in found if not row.is_offer}
        known = len(self._ids)
        # Offered messages become runs after the run of a request that has ended the active one.
        new = rows.keys() - {*self._ids}
        self._ids += sorted(new, key=lambda run_id: (run_id in self._tickets, run_id))
        number = {run_id: at for at, run_id in enumerate(self._ids)}
        tickets = self._now.tickets
        runs = []
        for at, run_id in enumerate(self._ids):
            row = rows[run_id]
            old = self._now.runs[at] if at < known else None
            is_due = old is not None and old.state == SCHEDULED and row.state == PENDING
            if run_id in self._tickets and old is None:
                ticket = self._tickets[run_id]
            elif old is None or is_due:
                ticket, tickets = tickets, tickets + 1
            else:
                ticket = old.ticket
            count = row.messages if row.messages is not None else len(old.messages) if old else 1
            # An offered message that an interrupt makes a run of does not.
            is_ahead = doing.on_busy in _AHEAD and run_id not in self._tickets
            goes_ahead = old.goes_ahead if old else row.state == PENDING and is_ahead
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
                    steered=tuple(range(row.steered)),
                    fence=row.fence,
                    is_discarded=row.is_discarded,
                    is_shown=row.is_shown,
                )
            )
        queue = sorted(
            (at for at, run in enumerate(runs) if run.state == PENDING),
            key=lambda at: rows[self._ids[at]].position,
        )
        offers = []
        for row in sorted((row for row in found if row.is_offer), key=lambda row: row.position):
            if row.id not in self._tickets:
                self._tickets[row.id], tickets = tickets, tickets + 1
            ticket = self._tickets[row.id]
            offers.append(Offer(ticket, self.users.index(row.created_by_user_id), ticket))
        now = Thread(tuple(runs), tuple(queue), tuple(offers), tickets=tickets)
        accepted = self._now.accepted + (doing.what == "create" and _has_more(self._now, now))
        return now._replace(accepted=accepted)

    def _check_states(self, after: Thread, doing: Doing) -> None:
        for name, promise in promises.of_states(self.max_waiting).items():
            if name not in _OF_VERDICT and (why := promise(after)):
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
        if doing.what == "step":
            # What was offered since its worker has looked is left out: it must be the last.
            taken = len(before.offered) - len(after.offered)
            if before.offered[taken:] != after.offered:
                self.faults.append(f"steered messages are in order: {before} became {after}")
            before = before._replace(offered=before.offered[:taken])
            after = after._replace(offered=())
        table = Table(thread_queue.RULES, max_waiting=self.max_waiting)
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
        if doing.what == "step":
            yield Happening.STEP, Case(run=target)
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


_AHEAD = (OnBusy.INTERRUPT, OnBusy.ROLLBACK)


def _has_more(before: Thread, after: Thread) -> bool:
    """Return whether a run was created or a message offered, or one has joined a run."""
    pairs = zip(before.runs, after.runs, strict=False)
    joined = any(len(new.messages) > len(old.messages) for old, new in pairs)
    return joined or len(after.runs) > len(before.runs) or len(after.offered) > len(before.offered)


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
            len(run.steered),
            *((run.cancel, run.has_followers) if run.state not in ENDED else ()),
        )
        for run in thread.runs
    ]
    return runs, thread.queue, len(thread.offered)
