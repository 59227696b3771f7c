"""Creating responses: a run in a new thread, the next run of one, or a reply to one that waits."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from flask import current_app
from sqlalchemy import RowMapping

from arkloop.api.http.current import actor, connections
from arkloop.api.protocols import (
    responses_answers,
    responses_ids,
    responses_input,
    responses_repeats,
    responses_runs,
    responses_steering,
)
from arkloop.api.protocols.projection import fold
from arkloop.api.protocols.responses_ids import ItemId, ResponseId
from arkloop.api.protocols.responses_input import Input
from arkloop.api.protocols.responses_object import RunFacts
from arkloop.api.protocols.responses_projection import ResponseProjection
from arkloop.api.protocols.responses_request import check_same, in_new_thread, new_run
from arkloop.shared import logs
from arkloop.shared.errors import (
    ArkloopError,
    BudgetExhausted,
    InvalidRequest,
    NotActive,
    NotNewestResponse,
    QueueFull,
    ResponseNotFound,
    RunLimitExceeded,
    StaleInput,
)
from arkloop.shared.ids import new_id
from arkloop.shared.runs import creation, queries, thread_order
from arkloop.shared.runs.creation import RunCreator
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Created:
    """A response that a request has created, or that the same request has created before.

    `counts_once` is whether the same request again gets this response, and no other. `fallback` is
    the run that the message of the request becomes if its run ends before it takes it.
    """

    id: ResponseId
    is_replay: bool = False
    counts_once: bool = True
    fallback: UUID | None = None


class _SentAgain(Exception):
    """A request that has created a response before; `refusal` is what it gets as another one."""

    def __init__(self, first: ResponseId, refusal: ArkloopError) -> None:
        super().__init__()
        self.first, self.refusal = first, refusal


def create(body: Body) -> Created:
    """Create the response that a request asks for, or continue one.

    Raises:
        InvalidRequest, PersonaNotFound, RouteNotFound, ResponseNotFound, Forbidden, Conflict
    """
    wanted = _read(body)
    if isinstance(wanted, ResponseId) or wanted.continues is not None:
        try:
            with connections().transaction() as tx:
                return _continue(tx, body, wanted, finds_same=True)
        except _SentAgain as again:
            logs.bind(run_id=str(again.first.run_id))
            return Created(again.first, is_replay=True)
    creator: RunCreator = current_app.extensions["arkloop.create_run"]
    return Created(ResponseId(creator(_first(body, wanted)).run_id, 0), counts_once=False)


def create_once(tx: Transaction, body: Body) -> Created:
    """Do as `create` does, in this transaction; the caller knows requests that are sent again."""
    wanted = _read(body)
    if isinstance(wanted, ResponseId) or wanted.continues is not None:
        try:
            return _continue(tx, body, wanted, finds_same=False)
        except _SentAgain as again:
            raise again.refusal from None
    return Created(ResponseId(creation.create(tx, _first(body, wanted, tx)).run_id, 0))


def _read(body: Body) -> Input | ResponseId:
    """Return the response that the request names, by which its input is read, or else its input."""
    text = body.get("previous_response_id")
    if text is None:
        return responses_input.read(body["input"])
    previous = responses_ids.parse(text)
    if previous is None:
        raise _unknown()
    return previous


def _first(body: Body, given: Input, tx: Transaction | None = None) -> creation.NewRun:
    if given.message is None:
        why = "must have a message of the user, or previous_response_id"
        raise InvalidRequest(input=[why])
    new = new_run(body, given, new_id(), None if tx is None else tx.sql)
    return in_new_thread(new)


def _continue(
    tx: Transaction, body: Body, wanted: Input | ResponseId, *, finds_same: bool
) -> Created:
    try:
        run, facts, previous = _found(tx, body, wanted)
    except ResponseNotFound:
        if isinstance(wanted, ResponseId):
            raise _unknown() from None
        return _begin(tx, body)
    shown: ResponseProjection | None = None  # by items, not by name
    is_past_failure = False
    if isinstance(previous, ResponseId):
        projection = ResponseProjection(facts, previous.waits)
        fold(tx.sql, projection, run["id"], skips_lost=True)
        own_calls = projection.asked_calls.keys()
        given = responses_input.read(body["input"], own_calls=own_calls)
        if given.continues is not None and given.continues.run_id != run["id"]:
            given = responses_input.read(body["input"], own_calls=own_calls, has_calls=False)
        shown = _shown_later(tx, given, facts, projection)
    else:
        given = wanted if isinstance(wanted, Input) else responses_input.read(body["input"])
        shown = responses_runs.asked_for(tx.sql, facts, given.results.keys(), previous.seq)
    if shown is not None:
        projection = shown
        if given.follows_message or given.follows_reply:
            projection = responses_runs.past_failure(tx.sql, facts, shown)
            is_past_failure = projection is not shown
    if not projection.has_begun:
        raise _unknown()
    is_answered = shown is None and (projection.asked is None or RunState(run["state"]).is_terminal)
    if given.follows_reply and not is_past_failure:
        together = responses_steering.Request(body, given, run, projection)
        offer = _steer(tx, together, facts, is_answered=is_answered, finds_same=finds_same)
        if offer is not None:
            return Created(ResponseId(run["id"], projection.waits), fallback=offer)
    if projection.asked is not None:
        try:
            # Without the run's lock if it has ended: creating the next one first locks others.
            with tx.sql.begin_nested():
                responses_answers.give(tx, given, run, projection)
                check_same(body["model"], run)
            return Created(ResponseId(run["id"], projection.waits))
        except (NotActive, StaleInput):
            # Answered elsewhere, or expired: the client has no id of what has become of the run.
            if given.message is None:
                raise
            _check_asks_nothing(tx, facts)
    if given.message is None:
        raise responses_answers.without_call(given)
    if given.shown:
        seq = _shown_up_to(given, run, projection)
        given = replace(given, shown=_unknown_lines(tx, run, seq, given.shown))
    return _next(tx, body, given, run, shows_items=shown is not None)


def _steer(
    tx: Transaction,
    together: responses_steering.Request,
    facts: RunFacts,
    *,
    is_answered: bool,
    finds_same: bool,
) -> UUID | None:
    """Give the run the outputs that it waits for, with the message behind them; returns the run
    that the message becomes otherwise. None if the run `is_answered` or has ended without them: the
    message is for the next one then.

    Raises:
        InvalidRequest, NotNewestResponse: the run cannot have both.
        _SentAgain: it has both by the same request, which is looked for if `finds_same`.
    """
    refusal: ArkloopError | None = None
    if not is_answered:
        try:
            if (offer := responses_steering.give_both(tx, together)) is not None:
                return offer
            refusal = responses_steering.refusal(tx, facts, together)
        except (BudgetExhausted, QueueFull, RunLimitExceeded) as error:
            refusal = error
    if finds_same and responses_steering.were_given(tx, together):
        first = ResponseId(together.run["id"], together.asking.waits)
        raise _SentAgain(first, refusal or NotNewestResponse())
    if refusal is not None:
        raise refusal
    return None


def _begin(tx: Transaction, body: Body) -> Created:
    """Create the first run of a thread, for an input with items of a run that the actor lacks.

    The retention may have deleted it, and the client would send these items for ever.

    Raises:
        InvalidRequest: the input replies to such a run, or has items by their ids alone.
    """
    given = responses_input.read(body["input"], has_items=False)
    made = creation.create(tx, _first(body, given, tx))
    return Created(ResponseId(made.run_id, 0), counts_once=False)


def _found(
    tx: Transaction, body: Body, wanted: Input | ResponseId
) -> tuple[RowMapping, RunFacts, ResponseId | ItemId]:
    """Return the run to continue, and what of it is continued.

    A loop over calls may name the response before it each time, though its items are of a later run
    of the conversation: that one counts.

    Raises:
        ResponseNotFound: there is no such run that the actor sees.
    """
    previous = wanted.continues if isinstance(wanted, Input) else wanted
    assert previous is not None
    run, facts = responses_runs.find(tx.sql, previous.run_id)
    if isinstance(previous, ItemId):
        return run, facts, previous
    _, shown = responses_input.known(body["input"])
    if shown is None or shown.run_id == previous.run_id:
        return run, facts, previous
    try:
        later, facts_of_later = responses_runs.find(tx.sql, shown.run_id)
    except ResponseNotFound:
        return run, facts, previous
    if later["thread_id"] != run["thread_id"] or not thread_order.is_after(later, run):
        return run, facts, previous
    return later, facts_of_later, shown


def _shown_later(
    tx: Transaction, given: Input, facts: RunFacts, named: ResponseProjection
) -> ResponseProjection | None:
    """Return the response of the last items if it is one of the same run after the named one."""
    last, asked = given.continues, named.asked
    if last is None or asked is None or last.run_id != facts.run_id:
        return None
    call_ids = given.results.keys()
    if last.seq <= asked["seq"] and call_ids <= named.asked_calls.keys():
        return None
    found = responses_runs.asked_for(tx.sql, facts, call_ids, last.seq)
    return found if found.response_id.waits > named.response_id.waits else None


def _check_asks_nothing(tx: Transaction, facts: RunFacts) -> None:
    """Check that the run does not wait for its client: a message would wait behind it.

    Nor does the message answer what the run asks by now, which its author has not seen.

    Raises:
        NotNewestResponse: names the response that ended with what the run asks.
    """
    pending = queries.get(tx.sql, actor(), facts.run_id)["pending_input"]
    if pending is None:
        return
    if ResponseProjection(facts).asks_client(pending):
        newest = responses_runs.newest_response(tx.sql, facts)
        raise NotNewestResponse(
            f"The newest response of the conversation, {newest}, waits for a reply:"
            " continue that one."
        )


def _next(
    tx: Transaction, body: Body, given: Input, run: RowMapping, *, shows_items: bool
) -> Created:
    """Create the next run of the thread.

    A client that `shows_items` has none of a later run that failed: it may try again behind it.

    Raises:
        NotNewestResponse: another run is the next one, and the client does not show its message.
        _SentAgain: it is the run of the same request.
    """
    new = new_run(body, given, run["thread_id"], tx.sql)
    same = responses_repeats.Request(new, given, run, skips_failed=shows_items)
    even_failed = run["id"] if shows_items else None

    def check(made: creation.Created) -> None:
        newest = thread_order.newest(tx.sql, run, but=made.run_id, even_failed=even_failed)
        if newest is None:  # the retention has just deleted all others
            raise NotNewestResponse()
        if newest != run["id"]:
            _check_shown(tx, same, newest, but=made.run_id)

    try:
        # It locks the active run before the thread, as the end of a run does, until the commit.
        made = creation.create(tx, new, check)
    except (BudgetExhausted, QueueFull, RunLimitExceeded) as refusal:
        # The run of the same request may be what the limit is reached by.
        if (first := responses_repeats.look(tx.sql, same).same) is not None:
            raise _SentAgain(ResponseId(first, 0), refusal) from None
        raise
    return Created(ResponseId(made.run_id, 0))


def _shown_up_to(given: Input, run: RowMapping, named: ResponseProjection) -> int | None:
    """Return the event of the run that the client's new messages follow, None if all of it is."""
    if given.continues is not None and given.continues.run_id == run["id"]:
        return given.continues.seq
    return None if named.asked is None else int(named.asked["seq"])


def _unknown_lines(
    tx: Transaction, run: RowMapping, seq: int | None, lines: Sequence[str]
) -> tuple[str, ...]:
    """Return those of the lines that the thread lacks behind this event of the run, or behind all
    of it, but for unlike files.

    A client has no item of a run that has failed, or that it stopped waiting for, but the thread
    has its message. A conversation from elsewhere, with lines of the assistant, stays whole.
    """
    if not all(line.startswith(responses_input.user_line("")) for line in lines):
        return tuple(lines)
    unknown, first = list(lines), 0
    for said in responses_runs.said_after(tx.sql, run, seq):
        with suppress(ValueError):
            first = unknown.index(responses_input.user_line(said.text), first)
            del unknown[first]
    return tuple(unknown)


def _check_shown(
    tx: Transaction, same: responses_repeats.Request, newest: UUID, *, but: UUID
) -> None:
    """Check that the request shows the messages of all runs up to the newest, leaving one out.

    Raises:
        NotNewestResponse: it does not, or the newest waits for its client.
        _SentAgain: it has created one of them.
    """
    _, facts = responses_runs.find(tx.sql, newest)
    followed = responses_repeats.look(tx.sql, same, but=but)
    if followed.same is not None:
        raise _SentAgain(ResponseId(followed.same, 0), _not_newest(tx, facts))
    # A client that left, or gave up, before the answer has the message alone.
    if followed.last != newest:
        raise _not_newest(tx, facts)
    _check_asks_nothing(tx, facts)


def _not_newest(tx: Transaction, facts: RunFacts) -> NotNewestResponse:
    newest = responses_runs.newest_response(tx.sql, facts)
    return NotNewestResponse(f"The conversation has a newer response: continue {newest} instead.")


def _unknown() -> InvalidRequest:
    return InvalidRequest(previous_response_id=["There is no such response."])
