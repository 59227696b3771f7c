"""The runs behind AG-UI: a new one for a message, or one that resumes with what it has asked."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID

from ag_ui.core import ResumeEntry
from sqlalchemy import Connection, Row, RowMapping

from arkloop.api.http import audited
from arkloop.api.http.current import actor, catalog, trace_id
from arkloop.api.http.end_users import chosen_persona
from arkloop.api.protocols import agui_echoes, call_ids, sent_files
from arkloop.api.protocols.agui_answering import (
    answering_run,
    came_with_reply,
    is_of_earlier_run,
    known_message,
)
from arkloop.api.protocols.agui_facts import AguiFacts, facts_of
from arkloop.api.protocols.agui_interrupts import content_of
from arkloop.api.protocols.agui_parts import (
    last_part,
    projection_of,
    waits_before_shown,
)
from arkloop.api.protocols.agui_projection import AguiProjection
from arkloop.api.protocols.agui_requests import RUN_ID, AguiRequest
from arkloop.shared import logs
from arkloop.shared.agents import call_approvals
from arkloop.shared.errors import (
    InvalidRequest,
    NotActive,
    NotWaiting,
    RunNotFound,
    StaleInput,
    ThreadBusy,
    ToolResultConflict,
)
from arkloop.shared.ids import new_id, parse_id
from arkloop.shared.runs import (
    commands,
    creation,
    pending_calls,
    queries,
    thread_entries,
    waiting_runs,
)
from arkloop.shared.runs.creation import Created, NewRun, NewThread
from arkloop.shared.runs.pending_calls import CallResult
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.threads import threads


class SentMeanwhile(Exception):
    """Another request has created a run for the message: to be tried again, after a rollback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run of the protocol: what follows a run's `waits`-th wait, or nothing yet.

    `pending` are calls whose results are still missing: then the run does not go on. With
    `connects`, the client lacks the parts before this one.
    """

    run_id: UUID
    waits: int = 0
    pending: list[str] = field(default_factory=list)
    connects: bool = False
    #: The places of tool messages that repeat replies, None if they are not known.
    echoes: frozenset[int] | None = None


def start(
    tx: Transaction,
    wanted: AguiRequest,
    persona_id: str | None,
    route_id: str | None,
    *,
    joins: bool = True,
    looks_again: bool = False,
) -> Part:
    """Do what the request asks for: resume a run, give it results, join one, or create one.

    With `joins`, a message that is sent again is answered by the run that is already active or
    waits for its turn. With `looks_again` that is also looked for behind the lock of the thread.

    Raises:
        Conflict: the run does not wait for this, or no longer.
        InvalidRequest, PersonaNotFound, RouteNotFound, Forbidden
        SentMeanwhile: only with `looks_again`.
    """
    thread = threads.find(tx.sql, actor(), wanted.thread_id)
    if wanted.resume:
        how = {"joins": joins, "looks_again": looks_again}
        return _resume(tx, wanted, thread, persona_id, route_id, **how)
    if run_id := next(filter(None, map(call_ids.run_of, wanted.results)), None):
        return _give_results(tx, wanted, thread, run_id)
    if joins and (joined := _joined(tx.sql, wanted, thread, persona_id, route_id)) is not None:
        return joined
    return _create(tx, wanted, thread, persona_id, route_id, looks_again=joins and looks_again)


# ---- a run that waits ----------------------------------------------------------------


def _resume(
    tx: Transaction,
    wanted: AguiRequest,
    thread: Row[Any] | None,
    persona_id: str | None,
    route_id: str | None,
    *,
    joins: bool,
    looks_again: bool,
) -> Part:
    """Answer the open interrupt, and create the run of a new message that comes with the answer.

    Returns what the client shows: the run of the message, if it has cancelled the interrupt, else
    what follows its answer. That run takes the place of the one that has asked: the user has moved
    on, and it may ask again. With a message a client may cancel what is over, which it cannot know.
    What is sent again changes nothing, and is shown the same.
    """
    message = wanted.new_message()
    is_cancelled = all(entry.status == "cancelled" for entry in wanted.resume)
    # A former content is an edit. Beside a cancel, that is decided by the runs behind the message.
    known = known_message(tx.sql, wanted, thread, is_last=not is_cancelled)
    agent = persona_id, route_id

    def joined() -> Part | None:
        return _joined(tx.sql, wanted, thread, *agent) if joins and known is not None else None

    create = partial(_create, tx, wanted, thread, *agent, looks_again=joins and looks_again)
    try:
        run, projection, entry = _asked(tx.sql, wanted, _may_have_asked(tx.sql, wanted, thread))
    except NotWaiting:
        if message is None or not is_cancelled:
            raise
        if (part := joined()) is None and thread is not None and known is not None:
            id_ = wanted.resume[0].interrupt_id
            asker = thread_entries.asking_run(tx.sql, thread.id, id_)
            run, projection, _ = _asked(tx.sql, wanted, [asker] if asker else ())
            if not (
                came_with_reply(tx.sql, known, run, projection.asked)
                or is_of_earlier_run(tx.sql, known, run)
            ):
                raise
        return part or create()
    assert projection.asked is not None
    content = content_of(projection.asked["data"], entry.status, entry.payload)
    # Pages may show the text of an answer as a message.
    is_new = (
        message is not None and known is None and (is_cancelled or message.content.text != content)
    )
    # Pages execute calls as soon as they are shown them, also such as the run makes after this.
    echoes = agui_echoes.earlier(tx.sql, wanted, run["thread_id"])
    if projection.asked["data"]["kind"] == call_approvals.KIND:
        asked_id = call_ids.shown(run["id"], projection.asked["data"]["tool_call_id"])
        echoes |= agui_echoes.own(wanted, asked_id)
    sent = agui_echoes.without(wanted, echoes)
    early = _results_of(sent, run["id"], projection.client_call_ids)
    request_id = UUID(entry.interrupt_id)
    is_asked_again = is_cancelled and (
        came_with_reply(tx.sql, known, run, projection.asked)
        or is_of_earlier_run(tx.sql, known, run)
    )

    def reply() -> None:
        audited.answer(tx, run["id"], content, request_id, early)

    def leave() -> None:
        active = waiting_runs.lock_active(tx.sql, run["thread_id"], with_sub_runs=True)
        pending = queries.get(tx.sql, actor(), run["id"])["pending_input"]
        # Another page may have sent the same reply: the run is left as well, before it asks again.
        is_it = active is not None and active.id == run["id"] and active.cancel_requested_at is None
        if not is_it or (pending and pending["request_id"] != entry.interrupt_id):
            raise NotWaiting()
        reply()

    if is_cancelled and (is_new or is_asked_again):
        made = joined() or create(answers=entry.interrupt_id, leave=leave)
        return replace(made, echoes=echoes)
    if is_new:
        # Before the answer, which locks its run: the limits of the org are locked first.
        create(answers=entry.interrupt_id)
    reply()
    return Part(run_id=run["id"], waits=projection.waits, echoes=echoes)


def _asked(
    sql: Connection, wanted: AguiRequest, run_ids: Iterable[UUID]
) -> tuple[RowMapping, AguiProjection, ResumeEntry]:
    """Return the one of the runs that has asked, and its part that does. Raises: NotWaiting."""
    entry = wanted.resume[0]
    for run_id in run_ids if len(wanted.resume) == 1 else ():
        run = queries.get(sql, actor(), run_id)
        facts = facts_of(run, wanted.thread_id, wanted.run_id)
        part = last_part(sql, facts, lambda data: data["request_id"] == entry.interrupt_id)
        if part.asked.get("request_id") == entry.interrupt_id:
            return run, projection_of(sql, facts, part), entry
    raise NotWaiting("The thread has no open interrupt of this id.")


def _may_have_asked(
    sql: Connection, wanted: AguiRequest, thread: Row[Any] | None
) -> Iterator[UUID]:
    """Yield the run that is active or has ended last, then the one that has the reply already."""
    if thread is None:
        return
    newest = thread.active_run_id or thread_entries.newest_run(sql, thread.id)
    if newest is not None:
        yield newest
    request_id = parse_id(wanted.resume[0].interrupt_id)
    replied = request_id and thread_entries.replied_run(sql, thread.id, request_id)
    if replied and replied != newest:
        yield replied


def _give_results(
    tx: Transaction, wanted: AguiRequest, thread: Row[Any] | None, run_id: UUID
) -> Part:
    results = wanted.results
    try:
        run = queries.get(tx.sql, actor(), run_id)
    except RunNotFound:
        run = None
    if run is None or thread is None or run["thread_id"] != thread.id:
        raise NotWaiting("The thread has no calls of these ids.")
    facts = facts_of(run, wanted.thread_id, wanted.run_id)
    part = last_part(tx.sql, facts, lambda data: bool(results.keys() & facts.client_call_ids(data)))
    asked_ids = facts.client_call_ids(part.asked)
    # The service's own calls have results among them, too.
    if not results.keys() & asked_ids:
        raise NotWaiting("The run is not waiting for these tool results.")
    # Others have sent some of them since a client was asked, perhaps with another output: they
    # would refuse those that the run lacks.
    echoes = agui_echoes.earlier(tx.sql, wanted, thread.id)
    own = agui_echoes.without(wanted, echoes)
    sent = [call_id for call_id in own.results if call_id in asked_ids]
    lacking = facts.missing(part.asked["request_id"], sent)
    given = _results_of(own, run_id, lacking)
    try:
        # Clients send the results of a turn together, also those of calls that were given up.
        commands.give_results(tx, actor(), run_id, given, skips_late=True)
    except ToolResultConflict as error:
        named = [facts.call_id(id_) for id_ in error.details["tool_call_ids"]]
        raise ToolResultConflict(tool_call_ids=named) from None
    run = queries.get(tx.sql, actor(), run_id)
    missing = _missing(tx.sql, run, facts, part.asked["request_id"])
    return Part(run_id=run_id, waits=part.waits, pending=missing, echoes=echoes)


def _results_of(wanted: AguiRequest, run_id: UUID, ids: Collection[str]) -> list[CallResult]:
    """Return the results that the request has of these calls of a run."""
    return [
        CallResult(
            tool_call_id=call_ids.stored(run_id, call_id),
            output=text,
            is_error=wanted.is_error(call_id),
        )
        for call_id, text in wanted.results.items()
        if call_id in ids
    ]


def _missing(sql: Connection, run: RowMapping, facts: AguiFacts, request_id: str) -> list[str]:
    """Return the calls of this request whose results the run still waits for.

    Where the results were sent before, the run may ask for others by now, in the part that follows.
    """
    pending: Mapping[str, Any] = run["pending_input"] or {}
    if pending.get("request_id") != request_id:
        return []
    awaited = pending_calls.awaited(sql, run)
    return [
        facts.call_id(call["tool_call_id"])
        for call in pending.get("calls", ())
        if call["name"] in facts.client_tools and call["tool_call_id"] in awaited
    ]


# ---- a new run -----------------------------------------------------------------------


def _joined(
    sql: Connection,
    wanted: AguiRequest,
    thread: Row[Any] | None,
    persona_id: str | None,
    route_id: str | None,
) -> Part | None:
    """Return the agent's run that is about to answer the very message of the request, None without.

    A client that has lost a response sends the message again, perhaps with another `runId`. A page
    with several agents sends it to each of them.
    """
    if thread is None or thread.active_run_id is None:
        return None
    found = answering_run(sql, wanted, thread.id, persona_id, route_id)
    if found is None:
        return None
    logs.bind(run_id=str(found))
    run = queries.get(sql, actor(), found)
    waits = waits_before_shown(sql, facts_of(run, wanted.thread_id, wanted.run_id))
    return Part(run_id=found, waits=waits, connects=waits > 0)


def _on_busy(
    sql: Connection, thread: Row[Any] | None, answers: str | None
) -> tuple[OnBusy, str | None]:
    """Return what becomes of a message while the thread's run is active.

    The second value is the request for which that holds: see `NewRun.if_asked`.

    The user has moved on where the page has not sent the results of its tools. It has nothing to do
    with those of HTTP tools. `answers` is the interrupt that the request replies to, too.

    Raises:
        ThreadBusy: an interrupt is open, which the protocol has answered first.
    """
    run_id: UUID | None = None if thread is None else thread.active_run_id
    pending = None if run_id is None else queries.get(sql, actor(), run_id)["pending_input"]
    if pending is None:
        return OnBusy.ENQUEUE, None
    if pending["kind"] != pending_calls.KIND:
        if pending["request_id"] == answers:
            return OnBusy.ENQUEUE, None
        raise ThreadBusy("The thread has an open interrupt; resume it first.")
    is_of_page = any(call.get("result_from") != "http" for call in pending["calls"])
    # Other requests may be quicker: their runs are not the one that the user has left.
    return (OnBusy.INTERRUPT, pending["request_id"]) if is_of_page else (OnBusy.ENQUEUE, None)


def _create(
    tx: Transaction,
    wanted: AguiRequest,
    thread: Row[Any] | None,
    persona_id: str | None,
    route_id: str | None,
    *,
    answers: str | None = None,
    leave: Callable[[], None] | None = None,
    looks_again: bool = False,
) -> Part:
    """Create the run of the request's message.

    `leave` ends the wait of the active run, which the new one then interrupts. If that is over
    already, by its errors, the new one waits for its turn.
    """
    message = wanted.new_message(by_default_route=route_id is None)
    if message is None:
        why = "must end with a message of the user, or with results of pending calls"
        raise InvalidRequest(messages=[why])
    persona = catalog().persona(actor().org_id, chosen_persona(persona_id), sql=tx.sql)
    route = catalog().choose_route(
        actor().org_id, route_id, persona, sql=tx.sql, advises=actor().end_user_id is None
    )
    options = wanted.options(persona, route)
    on_busy, if_asked = _on_busy(tx.sql, thread, answers)
    new = NewRun(
        actor=actor(),
        thread_id=new_id(),
        thread=NewThread(external_id=wanted.thread_id),
        message=message,
        persona=persona,
        route=route,
        trace_id=trace_id(),
        options=options,
        metadata={RUN_ID: wanted.run_id},
        on_busy=on_busy,
        if_asked=if_asked,
    )

    def check(made: Created) -> None:
        """Look for a run of this message that was created since the thread was read."""
        agent = persona_id, route_id
        waits = looks_again and made.position is not None
        if waits and answering_run(tx.sql, wanted, made.thread_id, *agent, but=made.run_id):
            raise SentMeanwhile()

    made = None
    if leave is not None:
        with suppress(NotActive, NotWaiting, StaleInput), tx.sql.begin_nested():
            interrupting = replace(new, on_busy=OnBusy.INTERRUPT, if_asked=None)
            made = creation.create(tx, interrupting, check, first=leave)
    made = made or creation.create(tx, new, check)
    sent_files.mark_used(tx)
    return Part(run_id=made.run_id)
