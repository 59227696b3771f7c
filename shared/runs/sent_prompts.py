"""The prompts of a run that somebody may see."""

from uuid import UUID

from sqlalchemy import Connection, func, select

from arkloop.shared.actors import Actor
from arkloop.shared.events import prompts
from arkloop.shared.events.prompts import Prompt
from arkloop.shared.runs import queries
from arkloop.shared.storage.tables.events import run_events

#: The facts that a worker stores with each prompt.
FACTS = {
    **dict.fromkeys(("sent_at", "purpose", "route_id", "provider", "model"), str),
    **dict.fromkeys(("attempt", "step", "try_number", "bytes"), int),
}


def read(sql: Connection, actor: Actor, run_id: UUID) -> list[Prompt]:
    """Return the prompts that the run's vendors have received, in order; none if none are stored.

    Each has all of `FACTS`; those whose facts are damaged are left out.

    Raises:
        RunNotFound: it does not exist, or the actor must not know of it.
    """
    queries.get(sql, actor, run_id)
    rows = sql.execute(
        select(run_events.c.seq, run_events.c.prompts)
        .where(run_events.c.run_id == run_id, run_events.c.prompts.is_not(None))
        .order_by(run_events.c.seq)
    )
    found = prompts.read((row.seq, row.prompts) for row in rows)
    return [
        prompt
        for prompt in found
        if all(type(prompt.facts.get(name)) is kind for name, kind in FACTS.items())
    ]


def stored_bytes(sql: Connection, run_id: UUID) -> int:
    """Sum the size of the prompts that are stored of the run so far."""
    size = func.sum(func.octet_length(run_events.c.prompts))
    return int(sql.scalar(select(size).where(run_events.c.run_id == run_id)) or 0)
