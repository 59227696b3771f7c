"""New runs, and the statement that queues many of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from arkloop.shared import ids, plugins
from arkloop.shared.actors import Actor
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import RunLimitExceeded
from arkloop.shared.runs import agent_queue, run_limits
from arkloop.shared.runs.overrides import Options
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.arrays import TextArray, plain_array
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.threads.content import Content, Part

_CREATE = statement(__package__, "create")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewThread:
    """A thread to be created together with a run in it, unless one has its `external_id`."""

    title: str | None = None
    is_private: bool = False
    end_user_id: str | None = None
    external_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    on_busy: OnBusy | None = None  # the default of its runs; None: `reject`


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A message of the user, to be created together with a run that answers it.

    `parts` are those of the content as they are stored: see `stored_parts`.
    """

    content: Content
    parts: Sequence[Part] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run to be created in a thread; with `thread` that one is created, too, as `thread_id`."""

    actor: Actor
    thread_id: UUID
    thread: NewThread | None = None
    message: NewMessage | None = None
    persona: Persona
    route: Route
    trace_id: str
    options: Options | None = None  # what it overrides of the persona
    end_user_id: str | None = None  # None: that of the thread
    metadata: Mapping[str, str] = field(default_factory=dict)
    on_busy: OnBusy | None = None  # None: the default of the thread
    #: With `interrupt`: the request for input that the active run must still have open; if it does
    #: not, this run waits for its turn.
    if_asked: str | None = None
    not_before: datetime | None = None  # when it may start

    @property
    def agent(self) -> str | None:
        """The agent whose workers execute it; None: the service's own workers."""
        return agent_of(self.persona)

    @property
    def size(self) -> int:
        """Characters, about."""
        said = len(self.message.content.text) if self.message else 0
        return said + sum(len(str(value)) for value in (self.options or {}).values())


def agent_of(persona: Persona) -> str | None:
    """Return the agent whose workers execute the persona's runs; None: the service's own do."""
    return None if persona.agent in plugins.names("agents") else persona.agent


class Created(NamedTuple):
    """A run that was created, or that has taken the message, and its thread."""

    run_id: UUID
    thread_id: UUID
    trace_id: str
    position: int | None = None  # in the queue of its thread, from 1 on
    is_merged: bool = False  # the run waited already, and has taken the message
    #: Of a message that is offered to the run: its id, and the run that it becomes otherwise.
    offered: tuple[UUID, UUID] | None = None


def create_all(tx: Transaction, wanted: Sequence[NewRun]) -> list[UUID | None]:
    """Queue the runs in one statement; the workers are notified after the commit.

    Does not check budgets and limits. Returns None for a run that cannot be created in this way:
    `create` says why, or does it.
    """
    new_ids = [ids.new_id() for _ in wanted]
    created = _insert(tx, wanted, new_ids, run_limits.NONE)
    return [run_id if run_id in created else None for run_id in new_ids]


def create_within_limits(
    tx: Transaction, wanted: Sequence[NewRun]
) -> list[UUID | RunLimitExceeded | None]:
    """Queue the runs as `create_all` does, as far as the limits of their orgs allow."""
    settings = tx.connections.settings
    new_ids = [ids.new_id() for _ in wanted]
    limits = run_limits.columns(settings, [new.actor for new in wanted])
    refusals = _insert(tx, wanted, new_ids, limits)
    made: list[UUID | RunLimitExceeded | None] = []
    for run_id, new in zip(new_ids, wanted, strict=True):
        if run_id not in refusals:
            made.append(None)
        elif (name := refusals[run_id]) is None:
            made.append(run_id)
        else:
            made.append(run_limits.refusal(settings, new.actor, name))
    return made


def _insert(
    tx: Transaction,
    wanted: Sequence[NewRun],
    new_ids: Sequence[UUID],
    limits: Mapping[str, str | None],
) -> dict[UUID, str | None]:
    """Insert the runs; return those that were created, and with its name those beyond a limit."""
    # What stands for none is not inserted.
    opened = [new.thread or NewThread() for new in wanted]
    rows = tx.sql.exec_driver_sql(
        _CREATE,
        {
            **columns(wanted),
            **limits,
            "ids": plain_array(new_ids),
            "open_threads": plain_array(new.thread is not None for new in wanted),
            "titles": TextArray(thread.title for thread in opened),
            "are_private": plain_array(thread.is_private for thread in opened),
            "thread_end_user_ids": TextArray(thread.end_user_id for thread in opened),
            "thread_metadata": _json_array(thread.metadata for thread in opened),
            "thread_on_busy": TextArray(thread.on_busy for thread in opened),
        },
    )
    refusals: dict[UUID, str | None] = {row.id: row.refusal for row in rows}
    tx.after_commit += [
        agent_queue.announce(run_id, new.actor.org_id, new.agent)
        for run_id, new in zip(new_ids, wanted, strict=True)
        if refusals.get(run_id, "") is None
    ]
    return refusals


def columns(wanted: Sequence[NewRun]) -> dict[str, str | TextArray]:
    """Return what the runs and their messages are made of, as arrays for a statement."""
    said = [new.message or NewMessage(content=Content("")) for new in wanted]
    return {
        "org_ids": plain_array(new.actor.org_id for new in wanted),
        "thread_ids": plain_array(new.thread_id for new in wanted),
        "user_ids": plain_array(new.actor.user_id for new in wanted),
        "api_key_ids": plain_array(new.actor.api_key_id for new in wanted),
        "write_all": plain_array(new.actor.writes_all for new in wanted),
        "trace_ids": TextArray(new.trace_id for new in wanted),
        "persona_ids": TextArray(new.persona.id for new in wanted),
        "route_ids": TextArray(new.route.id for new in wanted),
        "models": TextArray(new.route.model for new in wanted),
        "agents": TextArray(new.agent for new in wanted),
        "options": _json_array(new.options or None for new in wanted),
        "end_user_ids": TextArray(new.end_user_id for new in wanted),
        "metadata": _json_array(new.metadata for new in wanted),
        "message_ids": plain_array(new.message and ids.new_id() for new in wanted),
        "contents": TextArray(message.content.text for message in said),
        "parts": _json_array(message.parts for message in said),
        "message_metadata": _json_array(message.metadata for message in said),
    }


def _json_array(values: Iterable[Any]) -> TextArray:
    return TextArray(None if value is None else json.dumps(value) for value in values)
