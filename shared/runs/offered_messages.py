"""Messages that are offered to an active run: its next step takes them, or they become runs.

A message is delivered when the run's log has its `run.steered`: then it is part of that run. Until
somebody has settled it, its row stays; the end of the run settles what its worker could not.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)

from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events import event_log
from arkloop.shared.events.types import RunSteered
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import api_keys
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import FIRST_WAITING, offered_messages, runs
from arkloop.shared.storage.tables.threads import messages, thread_contexts, threads

#: The columns that a run has of its offered message.
_OF_RUN = (
    *("org_id", "thread_id", "created_by_user_id", "api_key_id", "trace_id", "persona_id"),
    *("route_id", "model", "agent", "options", "end_user_id", "metadata", "position"),
)


def find(sql: Connection, run_id: UUID) -> Sequence[Row[Any]]:
    """Return the messages that are offered to a run, in their order."""
    offered: Sequence[Row[Any]] = sql.execute(
        select(*(messages.c[name] for name in ("id", "content", "parts")))
        .join(offered_messages, offered_messages.c.message_id == messages.c.id)
        .where(offered_messages.c.active_run_id == run_id)
        .order_by(offered_messages.c.position)
    ).all()
    return offered


def settle(tx: Transaction, claim: Claim, message_ids: Sequence[UUID]) -> None:
    """Record that messages are part of a run, whose stored events have them.

    Raises:
        LeaseLost
    """
    is_held = (runs.c.id == claim.run_id) & (runs.c.fence == claim.fence)
    held = select(runs.c.id).where(is_held, runs.c.state == RunState.EXECUTING)
    if tx.sql.scalar(held.with_for_update(key_share=True)) is None:
        raise LeaseLost()
    _settle(tx, claim.run_id, message_ids)
    more = exists().where(offered_messages.c.active_run_id == claim.run_id)
    tx.sql.execute(update(runs).where(runs.c.id == claim.run_id).values(has_offered=more))


def _settle(tx: Transaction, run_id: UUID, message_ids: Iterable[UUID]) -> None:
    ids = list(message_ids)
    taken = {"steered_into": run_id, "end_user_id": offered_messages.c.end_user_id}
    of_offer = messages.c.id == offered_messages.c.message_id
    tx.sql.execute(update(messages).where(messages.c.id.in_(ids), of_offer).values(taken))
    tx.sql.execute(delete(offered_messages).where(offered_messages.c.message_id.in_(ids)))


def after_end(tx: Transaction, run_id: UUID, thread_id: UUID, position: int) -> int:
    """Settle what was delivered to a run that ends; the rest becomes runs.

    The caller has the locks of the run and the thread. Returns the position of the ended run, which
    is now behind the messages that it was steered with.
    """
    offered = tx.sql.execute(
        select(offered_messages.c.message_id).where(offered_messages.c.active_run_id == run_id)
    ).all()
    if offered:
        _settle(tx, run_id, delivered(tx.sql, run_id) & {row.message_id for row in offered})
        _turn_into_runs(tx, run_id)
    return _place(tx, run_id, thread_id, position)


def leave(tx: Transaction, run_id: UUID) -> None:
    """Make the messages that a run was steered with those of the user alone again.

    Only once the run has ended: its end gives them their places in the conversation.
    """
    tx.sql.execute(
        update(messages).where(messages.c.steered_into == run_id).values(steered_into=None)
    )


def by_run(sql: Connection, org_id: UUID, end_user_id: str) -> Mapping[UUID, Sequence[UUID]]:
    """Return the messages of an end user that are offered to active runs, by run."""
    found: dict[UUID, list[UUID]] = {}
    offer = select(offered_messages.c.active_run_id, offered_messages.c.message_id)
    for run_id, message_id in sql.execute(offer.where(_by(org_id, end_user_id))):
        found.setdefault(run_id, []).append(message_id)
    return found


def take_back(tx: Transaction, run_id: UUID, org_id: UUID, end_user_id: str) -> Sequence[UUID]:
    """Take an end user's offers to a run back; returns their messages, which nothing refers to.

    The run is locked first: its end makes runs of the offers.
    """
    tx.sql.execute(select(runs.c.id).where(runs.c.id == run_id).with_for_update(key_share=True))
    theirs = (offered_messages.c.active_run_id == run_id) & _by(org_id, end_user_id)
    taken = delete(offered_messages).where(theirs).returning(offered_messages.c.message_id)
    return tx.sql.scalars(taken).all()


def _by(org_id: UUID, end_user_id: str) -> ColumnElement[bool]:
    return and_(offered_messages.c.org_id == org_id, offered_messages.c.end_user_id == end_user_id)


def delivered(sql: Connection, run_id: UUID, *, after: int = 0) -> set[UUID]:
    """Return the messages that a run was steered with behind this event of it."""
    steered = select(run_events.c.payload).where(
        run_events.c.run_id == run_id,
        run_events.c.seq > after,
        run_events.c.type == RunSteered.type,
    )
    return {UUID(event_log.data_of(payload)["message_id"]) for payload in sql.scalars(steered)}


def _turn_into_runs(tx: Transaction, run_id: UUID) -> None:
    """Insert a pending run for each offered message of a run; a revoked key's is cancelled."""
    revoked_at = (
        select(api_keys.c.revoked_at)
        .where(api_keys.c.id == offered_messages.c.api_key_id)
        .scalar_subquery()
    )
    new = select(
        offered_messages.c.run_id,
        *(offered_messages.c[name] for name in _OF_RUN),
        cast(literal(RunState.PENDING.value), Text),
        offered_messages.c.created_at,
        func.now(),
        revoked_at,
    ).where(offered_messages.c.active_run_id == run_id)
    also = ("state", "created_at", "queued_at", "cancel_requested_at")
    tx.sql.execute(insert(runs).from_select(["id", *_OF_RUN, *also], new))
    tx.sql.execute(delete(offered_messages).where(offered_messages.c.active_run_id == run_id))


def _place(tx: Transaction, run_id: UUID, thread_id: UUID, position: int) -> int:
    """Move an ended run, with what it has left in the thread, behind the messages it had.

    Others that were sent while it ran move behind it: the next run answers them.
    """
    steered = tx.sql.scalars(
        select(messages.c.id).where(messages.c.steered_into == run_id).order_by(messages.c.position)
    ).all()
    if not steered:
        return position
    sent = (
        select(messages.c.id, func.row_number().over(order_by=messages.c.position).label("number"))
        .where(
            messages.c.thread_id == thread_id,
            messages.c.position > position,
            messages.c.position < FIRST_WAITING,
            messages.c.steered_into.is_distinct_from(run_id),
        )
        .subquery()
    )
    count = tx.sql.scalar(select(func.count()).select_from(sent)) or 0
    last = tx.sql.execute(
        update(threads)
        .where(threads.c.id == thread_id)
        .values(next_position=threads.c.next_position + len(steered) + count)
        .returning(threads.c.next_position - 1 - count)
    ).scalar_one()
    if count:
        behind = update(messages).where(messages.c.id == sent.c.id)
        tx.sql.execute(behind.values(position=last + sent.c.number))
    moved = {"position": last}
    tx.sql.execute(update(messages).where(messages.c.run_id == run_id).values(moved))
    tx.sql.execute(update(runs).where(runs.c.id == run_id).values(moved))
    tx.sql.execute(
        update(thread_contexts)
        .where(thread_contexts.c.thread_id == thread_id)
        .where(thread_contexts.c.upto_position == position)
        .values(upto_position=last)
    )
    # The first has the place that the run had, the others those that were taken for it.
    places = [position, *range(last - len(steered) + 1, last)]
    for message_id, place in zip(steered, places, strict=True):
        tx.sql.execute(update(messages).where(messages.c.id == message_id).values(position=place))
    return int(last)
