"""Replies of a client to what a run waits for: outputs of functions, answers and approvals."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping

from arkloop.api.http import audited
from arkloop.api.protocols import responses_results
from arkloop.api.protocols.responses_input import Approval, Input
from arkloop.api.protocols.responses_projection import ResponseProjection
from arkloop.shared.agents import approvals
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.runs import thread_entries
from arkloop.shared.storage.connections import Transaction

#: Why an answer with files is refused.
TEXT_ALONE = (
    "The answer to a question, or to a request for approval, must be text alone: send images and"
    " files after the response to it."
)


def give(tx: Transaction, given: Input, run: RowMapping, projection: ResponseProjection) -> None:
    """Give the run what it has asked its client for.

    Raises:
        NotActive: the run has ended. StaleInput: the request has got another answer.
    """
    assert projection.asked is not None
    data, run_id = projection.asked["data"], run["id"]
    if data["kind"] == "tool_results":
        responses_results.give(tx, given, run, projection.asked_calls)
    elif given.message is not None:
        _answer(tx, given, run_id, UUID(data["request_id"]))
    elif given.approval is not None and data["kind"] == "tool_confirmation":
        content = _decision(given.approval, _request_item(run_id, projection.asked))
        audited.answer(tx, run_id, content, UUID(data["request_id"]))
    else:
        raise without_call(given)


def may_have_reply(
    sql: Connection, given: Input, run_id: UUID, projection: ResponseProjection
) -> bool:
    """Return whether the run may have one of the outputs, or the approval, in front of the message.

    It has none where their time was over, it was cancelled, or somebody else has replied.
    """
    assert projection.asked is not None
    if projection.asked["data"]["kind"] == "tool_results":
        return responses_results.has_any(sql, given, run_id, projection.asked_calls)
    item, approval = _request_item(run_id, projection.asked), given.approval_before
    if approval is None or approval.request_item != item:
        return True
    request_id = UUID(projection.asked["data"]["request_id"])
    reply = thread_entries.reply_to(sql, run_id, request_id)
    if approval.approve:
        return reply is not None and approvals.read(reply).approved
    return reply == _decision(approval, item)  # a denial without a reply is stored as one, too


def without_call(given: Input) -> InvalidRequest:
    """Return the error for a reply that nothing asks for."""
    if given.approval is not None:
        return InvalidRequest(input=["The response before does not ask for an approval."])
    if not given.results:
        return InvalidRequest(input=["must have a message of the user"])
    return InvalidRequest(
        input=[f"No function call found with call_id {next(iter(given.results))}."]
    )


def _answer(tx: Transaction, given: Input, run_id: UUID, request_id: UUID) -> None:
    """Answer with the user's last message.

    Raises:
        NotActive, StaleInput
        InvalidRequest: the request is open, and the message has files.
    """
    assert given.last is not None
    audited.answer(tx, run_id, given.last.text, request_id)
    if any(part["type"] != "text" for part in given.last.parts or ()):
        raise InvalidRequest(input=[TEXT_ALONE])


def _request_item(run_id: UUID, asked: Mapping[str, Any]) -> str:
    return f"mcpr_{run_id.hex}_{asked['seq']}"


def _decision(approval: Approval, request: str) -> str:
    if approval.request_item != request:
        why = "is not the request that the response ended with"
        raise InvalidRequest(approval_request_id=[why])
    decision = {"decision": "approve" if approval.approve else "deny"}
    if not approval.approve and approval.reason:
        decision["reason"] = approval.reason
    return json.dumps(decision, ensure_ascii=False)
