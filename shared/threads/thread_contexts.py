"""The truncation points of a thread: where requests to its models begin.

Each is for one size of a model's context: a model with a larger one still sees what a smaller one
has no room for.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, bindparam, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.claim import Claim
from arkloop.shared.events.types import ContextCompacted
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import erasures
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import thread_contexts

_FIELDS = (
    "window_tokens",
    "upto_position",
    "upto_seq",
    "dropped_messages",
    "result_tokens",
    "summary",
)

#: The record of an erasure has the time at which it was written; what is deleted can be read until
#: the commit.
_ERASURE_LASTS = timedelta(minutes=1)


def load(sql: Connection, thread_id: UUID) -> dict[int, ContextCompacted]:
    """Return the thread's truncation points, by the model's context in tokens."""
    columns = [thread_contexts.c[name] for name in _FIELDS]
    rows = sql.execute(select(*columns).where(thread_contexts.c.thread_id == thread_id))
    return {row.window_tokens: ContextCompacted(**row._mapping) for row in rows}


def move(tx: Transaction, claim: Claim, to: ContextCompacted) -> None:
    """Store a truncation point of the run's thread; no effect if the claim is over.

    Nor with a summary by a run that began before an erasure in its org: it may have read, or summed
    up before, what was erased. Later runs sum up anew.
    """
    given = [bindparam(None, getattr(to, name), thread_contexts.c[name].type) for name in _FIELDS]
    held = (
        select(runs.c.thread_id, *given)
        .where(
            runs.c.id == claim.run_id,
            runs.c.fence == claim.fence,
            runs.c.state == "executing",
        )
        .with_for_update(read=True)
    )
    if to.summary is not None:
        is_since = erasures.c.created_at > runs.c.started_at - _ERASURE_LASTS
        held = held.where(~exists().where(erasures.c.org_id == runs.c.org_id, is_since))
    new = upsert(thread_contexts).from_select(["thread_id", *_FIELDS], held)
    changed = {name: new.excluded[name] for name in _FIELDS} | {"updated_at": func.now()}
    key = ["thread_id", "window_tokens"]
    tx.sql.execute(new.on_conflict_do_update(index_elements=key, set_=changed))


def is_moved_since(sql: Connection, thread_id: UUID, position: int) -> bool:
    """Return whether a point was moved after the end of the run at this position.

    The run that moved it need not have finished a turn, and may have been superseded.
    """
    ended_at = select(func.max(runs.c.ended_at)).where(
        runs.c.thread_id == thread_id, runs.c.position == position
    )
    is_later = thread_contexts.c.updated_at > ended_at.scalar_subquery()
    later = exists().where(thread_contexts.c.thread_id == thread_id, is_later)
    return bool(sql.scalar(select(later)))


def forget(tx: Transaction, thread_id: UUID, position: ColumnElement[int]) -> None:
    """Delete the points that lie beyond `position`: what follows it has been superseded."""
    tx.sql.execute(
        delete(thread_contexts).where(
            thread_contexts.c.thread_id == thread_id, thread_contexts.c.upto_position > position
        )
    )
