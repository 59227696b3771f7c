"""Requests for a run in a thread where it has to wait, or may have to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, insert, literal, null, select, update

from arkloop.shared import client_data, ids
from arkloop.shared.billing import budget_limits
from arkloop.shared.errors import NotActive, QueueFull, ThreadBusy
from arkloop.shared.runs import places, thread_queue, trees, waiting_runs
from arkloop.shared.runs.new_runs import Created, NewRun, create_all
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.thread_queue import (
    Effect,
    Guard,
    Happening,
    OnBusy,
    rule_for,
)
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.runs import IS_PENDING, offered_messages, runs
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.threads import threads

#: Requests that end the active run, and with it all sub-runs below.
_REPLACING = (OnBusy.INTERRUPT, OnBusy.ROLLBACK)


def create(tx: Transaction, new: NewRun, on_busy: OnBusy) -> Created:
    """Create a run in an existing thread, as the rules of `thread_queue` say.

    Raises:
        ThreadNotFound, Forbidden, BudgetExhausted
        ThreadBusy, QueueFull, NotActive
        InvalidRequest: a run would have too much metadata.
    """
    while True:
        with tx.sql.begin_nested() as attempt:
            # Not the thread first: the end of a run has that run and waits for the thread.
            active = waiting_runs.lock_active(
                tx.sql, new.thread_id, with_sub_runs=on_busy in _REPLACING
            )
            of_thread = threads.lock(tx, new.actor, new.thread_id)
            if not waiting_runs.is_still(tx.sql, new.thread_id, active):
                attempt.rollback()  # and with it the locks
                continue
            if active is not None and new.if_asked not in (None, active.client_request_id):
                on_busy = OnBusy.ENQUEUE  # another request, or a reply, was quicker
            end_user_id = new.end_user_id or of_thread
            budget_limits.check_open(
                *(tx.sql, new.actor, new.persona, new.route, end_user_id), agent=new.agent
            )
            return _Request(tx, new, on_busy, active, end_user_id).carry_out()


@dataclass(slots=True)
class _Request:
    """A request under the locks of the active run and its thread."""

    tx: Transaction
    new: NewRun
    on_busy: OnBusy
    active: Row[Any] | None
    end_user_id: str | None
    run_id: UUID = field(default_factory=ids.new_id)
    queue: places.Queue = field(init=False)
    pending: Sequence[Row[Any]] = ()  # where one of them may change
    cancelled: Sequence[Row[Any]] = ()  # the rows of what is to be cancelled for it
    first_place: int | None = None  # once it was looked for

    def carry_out(self) -> Created:
        """Carry out the effects of the rule."""
        self.queue = places.queue_of(self.tx.sql, self.new.thread_id)
        if self.on_busy is OnBusy.MERGE or self.on_busy in _REPLACING:
            self.pending = self._pending()
        facts = self._facts()
        holder = waiting_runs.holder_of(self.active)
        rule = rule_for(Happening.CREATE, holder, facts, self.on_busy)
        made = Created(self.run_id, self.new.thread_id, self.new.trace_id)
        for effect in rule.effects:
            match effect:
                case Effect.REJECT_BUSY:
                    raise ThreadBusy(active_run_id=str(self._active.id))
                case Effect.REJECT_FULL:
                    raise QueueFull()
                case Effect.REJECT_NOT_ACTIVE:
                    raise NotActive("The active run waits for input and takes no message.")
                case Effect.START:
                    [run_id] = create_all(self.tx, [self.new])
                    assert run_id is not None  # nothing is in its way
                    made = made._replace(run_id=run_id)
                case Effect.PEND_LAST:
                    self._insert(RunState.PENDING, self.queue.end)
                    made = made._replace(position=self.queue.pending + 1)
                case Effect.PEND_FIRST:
                    self._insert(RunState.PENDING, self._first_place())
                    made = made._replace(position=1)
                case Effect.SCHEDULE:
                    self._insert(RunState.SCHEDULED, self.queue.end)
                case Effect.JOIN:
                    made = self._join()
                case Effect.OFFER:
                    made = self._offer()
                case Effect.FLAG:
                    is_offer = Effect.OFFER in rule.effects
                    also = {"has_offered": True} if is_offer else {}
                    waiting_runs.flag(self.tx, self._active.id, **also)
                case Effect.SUPERSEDE_FIRST:
                    self._supersede_first()
                case Effect.SUPERSEDE_ACTIVE:
                    self._supersede_active()
                case Effect.DISCARD_OUTPUT:
                    self._discard_output()
                case Effect.END_ACTIVE:
                    made = made._replace(position=None)  # it is what starts
        # Last: if no worker holds the active run, it ends now, and the next one starts.
        trees.carry_out(self.tx, self.cancelled)
        return made

    @property
    def _active(self) -> Row[Any]:
        assert self.active is not None  # the rule is one for a busy thread
        return self.active

    def _pending(self) -> Sequence[Row[Any]]:
        """Return the runs that are pending, the first one first, and lock them: one may change."""
        names = ("id", "state", "position", "created_by_user_id", "api_key_id", "end_user_id")
        also = ("persona_id", "route_id", "options", "metadata", "trace_id", "cancel_requested_at")
        return self.tx.sql.execute(
            select(*(runs.c[name] for name in (*names, *also)))
            .where(runs.c.thread_id == self.new.thread_id, IS_PENDING)
            .order_by(runs.c.position)
            .with_for_update(key_share=True)
        ).all()

    def _facts(self) -> set[Guard]:
        holds = {
            Guard.HAS_TIME: self._is_for_later(),
            Guard.IS_FULL: self.queue.waiting >= thread_queue.MAX_WAITING,
            Guard.MAY_JOIN: self._joinable() is not None,
            Guard.TAKES_MESSAGES: self._takes_messages(),
            Guard.IS_SUPERSEDED: self._is_superseded(),
        }
        return {guard for guard, is_held in holds.items() if is_held}

    def _takes_messages(self) -> bool:
        """Return whether the active run is one of the service's workers, and there is a message."""
        return self.active is not None and self.active.agent is None and bool(self.new.message)

    def _is_for_later(self) -> bool:
        moment = self.new.not_before
        return moment is not None and bool(
            self.tx.sql.scalar(select(literal(moment) > func.clock_timestamp()))
        )

    def _is_superseded(self) -> bool:
        if self.active is None or not self.pending:
            return False
        first = self.pending[0]
        return bool(first.id == self.active.superseded_by and self._has_room(first))

    def _joinable(self) -> Row[Any] | None:
        """Return the caller's last pending run, if it is one that can take the message, too."""
        new, actor = self.new, self.new.actor
        own = [
            row
            for row in self.pending
            if (row.created_by_user_id, row.api_key_id, row.end_user_id)
            == (actor.user_id, actor.api_key_id, self.end_user_id)
        ]
        if self.on_busy is not OnBusy.MERGE or not own:
            return None
        row = own[-1]
        is_same = (row.persona_id, row.route_id, row.options or None) == (
            *(new.persona.id, new.route.id),
            new.options or None,
        )
        # The org may have created it: its metadata are not for what an end user says.
        is_same &= actor.end_user_id is None or row.metadata == new.metadata
        return row if is_same and row.cancel_requested_at is None and self._has_room(row) else None

    def _has_room(self, run: Row[Any]) -> bool:
        query = select(func.count()).where(
            messages.c.thread_id == self.new.thread_id, places.in_slot(run.position)
        )
        return (self.tx.sql.scalar(query) or 0) < places.MAX_MESSAGES

    def _first_place(self) -> int:
        if self.first_place is None:
            self.first_place = places.first(self.tx.sql, self.new.thread_id)
        return self.first_place

    def _insert(self, state: RunState, place: int) -> None:
        self.tx.sql.execute(
            insert(runs).values(
                **self._columns(place),
                id=self.run_id,
                state=state,
                not_before=self.new.not_before if state is RunState.SCHEDULED else None,
                created_at=func.clock_timestamp(),
                queued_at=func.clock_timestamp(),
            )
        )
        self._say(place)

    def _offer(self) -> Created:
        """Insert the message, with what it needs to become a run."""
        place = self.queue.end
        message_id = self._say(place)
        assert message_id is not None  # the guard
        self.tx.sql.execute(
            insert(offered_messages).values(
                **self._columns(place),
                run_id=self.run_id,
                active_run_id=self._active.id,
                message_id=message_id,
            )
        )
        active, offered = self._active, (message_id, self.run_id)
        return Created(active.id, self.new.thread_id, active.trace_id, offered=offered)

    def _columns(self, place: int) -> dict[str, Any]:
        new, actor = self.new, self.new.actor
        return {
            "org_id": actor.org_id,
            "thread_id": new.thread_id,
            "created_by_user_id": actor.user_id,
            "api_key_id": actor.api_key_id,
            "trace_id": new.trace_id,
            "persona_id": new.persona.id,
            "route_id": new.route.id,
            "model": new.route.model,
            "agent": new.agent,
            "options": new.options or null(),
            "end_user_id": self.end_user_id,
            "metadata": dict(new.metadata),
            "position": place,
        }

    def _say(self, place: int) -> UUID | None:
        """Insert the message, if there is one, behind those that the run at this place has."""
        new, message_id = self.new, ids.new_id()
        if new.message is None:
            return None
        newest = select(func.max(messages.c.position)).where(
            messages.c.thread_id == new.thread_id, places.in_slot(place)
        )
        before = func.coalesce(newest.scalar_subquery(), place - places.SLOT)
        self.tx.sql.execute(
            insert(messages).values(
                id=message_id,
                org_id=new.actor.org_id,
                thread_id=new.thread_id,
                created_by_user_id=new.actor.user_id,
                position=before + 1,
                role="user",
                content=new.message.content.text,
                parts=null() if new.message.parts is None else new.message.parts,
                metadata=dict(new.message.metadata),
            )
        )
        return message_id

    def _join(self) -> Created:
        run = self._joinable()
        assert run is not None  # the guard
        if self.new.metadata:
            metadata = client_data.merged(run.metadata, self.new.metadata)
            self.tx.sql.execute(update(runs).where(runs.c.id == run.id).values(metadata=metadata))
        self._say(run.position)
        position = self.pending.index(run) + 1
        return Created(run.id, self.new.thread_id, run.trace_id, position, is_merged=True)

    def _supersede_first(self) -> None:
        run = self.pending[0]
        for what, ended in (("the active run", self._active), ("the pending run", run)):
            self.new.actor.check_may_write(what, ended.created_by_user_id)
        place = self._first_place()
        moved = (
            update(messages)
            .where(messages.c.thread_id == self.new.thread_id, places.in_slot(run.position))
            .values(position=messages.c.position + (place - run.position))
        )
        self.tx.sql.execute(moved)
        waiting_runs.withdraw(self.tx, run._mapping, superseded_by=self.run_id)
        self._name_successor()

    def _supersede_active(self) -> None:
        active = self._active
        self.new.actor.check_may_write("the active run", active.created_by_user_id)
        # Before the request, whose signal says whether its row has more of it.
        self._name_successor()
        self.cancelled = trees.request_cancel(self.tx, self.new.actor, active.id)

    def _name_successor(self) -> None:
        """Record in the active run's row that it ends for the new run."""
        named = update(runs).where(runs.c.id == self._active.id)
        self.tx.sql.execute(named.values(superseded_by=self.run_id))

    def _discard_output(self) -> None:
        active = self._active
        self.new.actor.check_may_write("the active run", active.created_by_user_id)
        discarded = update(runs).where(runs.c.id == active.id)
        self.tx.sql.execute(discarded.values(superseded_at=func.now()))
        waiting_runs.discard(self.tx, self.new.thread_id, active.id, active.position)
