"""Requests with outputs of function calls and a new message of the user behind them.

Some clients send outputs only in this way. The run that waits for the outputs gets both or none:
the message steers it, so the model reads outputs and message in its next call.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping

from arkloop.api.protocols import (
    responses_answers,
    responses_input,
    responses_results,
    responses_runs,
)
from arkloop.api.protocols.responses_defaults import with_defaults, without_defaults
from arkloop.api.protocols.responses_ids import ResponseId
from arkloop.api.protocols.responses_input import Input
from arkloop.api.protocols.responses_object import RunFacts
from arkloop.api.protocols.responses_projection import ResponseProjection
from arkloop.api.protocols.responses_request import check_same, new_run
from arkloop.shared.errors import (
    InvalidRequest,
    NotActive,
    NotNewestResponse,
    NotWaiting,
)
from arkloop.shared.runs import creation, thread_entries, waiting_runs
from arkloop.shared.runs.new_runs import NewRun
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.threads import earlier_lines

#: Why a message behind outputs or an approval is refused that the run still waits for.
REPLY_FIRST = (
    "The run waits for the outputs or the approval before the message: send these first, without"
    " it, and the message after the response to them."
)
#: The metadata of a message that was taken together with outputs: the digest of its request.
_REQUEST = "responses.steering_request"


@dataclass(frozen=True, slots=True)
class Request:
    """A request with outputs, or an approval, and a message behind them for the run that has asked
    for them by the end of the response `asking`.
    """

    body: Mapping[str, Any]
    given: Input
    run: RowMapping
    asking: ResponseProjection


def give_both(tx: Transaction, request: Request) -> UUID | None:
    """Give the run the outputs, and offer it the message; returns the run that this becomes if the
    run ends before it takes it.

    Returns None if it has none of them, as it does not wait for these outputs, waits for others,
    too, or takes no messages: the caller does not commit then.
    """
    asked, given, run = request.asking.asked, request.given, request.run
    if asked is None or asked["data"]["kind"] != "tool_results" or not given.results_before:
        return None
    if run["pending_input"] is None:
        return None
    new = _new(tx, request)
    assert new.message is not None
    metadata = {**new.message.metadata, _REQUEST: _digest(new, request)}
    new = replace(new, message=replace(new.message, metadata=metadata))

    def give_outputs() -> None:
        active = waiting_runs.lock_active(tx.sql, run["thread_id"])
        if active is None or active.id != run["id"]:
            raise NotActive()
        if active.client_request_id != asked["data"]["request_id"]:
            raise NotWaiting()
        outputs = replace(given, message=None, results=given.results_before)
        responses_results.give(tx, outputs, run, request.asking.asked_calls)
        check_same(request.body["model"], run)

    try:
        with tx.sql.begin_nested():
            offered = creation.create(tx, new, first=give_outputs).offered
            if offered is None:
                raise NotActive()
        return offered[1]
    except (NotActive, NotWaiting):
        return None


def were_given(tx: Transaction, request: Request) -> bool:
    """Return whether the same request has given the run both."""
    if not request.given.results_before:
        return False
    new, thread_id = _new(tx, request), request.run["thread_id"]
    options = new.options or {}
    # Whether defaults were overrides depends on what the persona's version of that time allowed.
    without = without_defaults(options, new.persona, new.route)
    either = (without, with_defaults(options, request.body))
    digests = {_digest(replace(new, options=one or None), request) for one in either}
    return any(
        thread_entries.find_message(tx.sql, thread_id, _REQUEST, digest) is not None
        for digest in digests
    )


def refusal(
    tx: Transaction, facts: RunFacts, request: Request
) -> InvalidRequest | NotNewestResponse | None:
    """Return the error for a message behind a reply that does not count with it.

    None if the run has ended without the reply: the message is for the next one.
    """
    pending, asked = request.run["pending_input"], request.asking.asked
    if asked is None:
        return InvalidRequest(input=[responses_input.ONE_OF])
    if pending and pending["request_id"] == asked["data"]["request_id"]:
        return InvalidRequest(input=[REPLY_FIRST])
    has_ended = RunState(request.run["state"]).is_terminal
    given, run_id = request.given, request.run["id"]
    if has_ended and not responses_answers.may_have_reply(tx.sql, given, run_id, request.asking):
        return None
    found = responses_runs.newest_response(tx.sql, facts)
    # The run need not have continued yet, with events of the response behind that.
    newest = ResponseId(facts.run_id, max(found.waits, request.asking.waits))
    return NotNewestResponse(
        "The run has the outputs or the approval before the message: send the message behind the"
        f" items of its newest response, {newest}, or with that as previous_response_id."
    )


def _new(tx: Transaction, request: Request) -> NewRun:
    new = new_run(request.body, request.given, request.run["thread_id"], tx.sql)
    return replace(new, on_busy=OnBusy.STEER)


def _digest(new: NewRun, request: Request) -> str:
    """Return the digest of all by which two requests of this kind are the same.

    A newer version of the persona makes no difference, as the request may name none, nor does the
    route where it names a persona: another one may be the default by now.
    """
    given, who = request.given, new.actor
    assert given.message is not None
    key = new.persona.id.partition("@")[0]
    names_persona = request.body["model"].partition("@")[0] == key
    outputs = {**given.earlier_results, **given.results_before}
    same = [
        *(str(request.asking.response_id), sorted(outputs.items())),
        *(given.message.text, given.message.parts, earlier_lines.digest(given.earlier)),
        *(str(who.user_id), str(who.api_key_id), who.end_user_id or new.end_user_id),
        *(key, None if names_persona else new.route.id, new.options, new.metadata),
    ]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
