"""Interrupts of AG-UI, with which a run asks a person, and the replies to them."""

import json
from collections.abc import Mapping
from typing import Any

from ag_ui.core import Interrupt

from arkloop.shared.errors import InvalidRequest

#: The kinds of `run.waiting_for_input` → the reasons that the protocol knows.
_REASONS = {
    "question": "input_required",
    "form": "input_required",
    "tool_confirmation": "tool_call",
    "authorization": "confirmation",
}
_PROPERTIES = {
    "approved": {"type": "boolean"},
    "editedArgs": {
        "type": "object",
        "description": "Arguments in place of the proposed ones, not merged with them.",
    },
    "reason": {"type": "string", "description": "Why it is not approved, for the agent."},
}
_APPROVAL = {"type": "object", "properties": _PROPERTIES, "required": ["approved"]}
#: Of a reader who may not change the arguments.
_APPROVAL_AS_IT_IS = {
    **_APPROVAL,
    "properties": {n: of for n, of in _PROPERTIES.items() if n != "editedArgs"},
}
#: The members that a reply to an approval may have.
APPROVAL_FIELDS = _PROPERTIES.keys()
UNANSWERED = "The user did not answer."


def interrupt_of(
    data: Mapping[str, Any], tool_call_id: str | None, *, may_edit: bool = True
) -> Interrupt:
    """Return the interrupt of a `run.waiting_for_input`, whose id is that of the request.

    `may_edit` is whether its reader may change the arguments of a call to approve.
    """
    return Interrupt(
        id=data["request_id"],
        reason=_REASONS.get(data["kind"], "input_required"),
        message=data["prompt"],
        tool_call_id=tool_call_id,
        response_schema=_schema(data, may_edit=may_edit),
        expires_at=data["expires_at"],
        metadata={name: data[name] for name in ("url", "approved_by") if data.get(name)} or None,
    )


def content_of(data: Mapping[str, Any], status: str, payload: Any) -> str:
    """Return the answer that the run is given for a resume entry.

    Raises:
        InvalidRequest: the payload does not fit the kind of the request.
    """
    is_cancelled = status == "cancelled"
    match data["kind"]:
        case "tool_confirmation":
            unanswered = {"decision": "deny", "reason": UNANSWERED}
            decision = unanswered if is_cancelled else _decision(payload)
            return json.dumps(decision, ensure_ascii=False)
        case "form" | "authorization" if is_cancelled:
            return "cancel"
        case "form":
            return json.dumps({"action": "accept", "content": payload}, ensure_ascii=False)
        case "authorization":
            if not isinstance(payload, bool):
                raise InvalidRequest(payload=["must be true or false"])
            return "accept" if payload else "decline"
    if is_cancelled:
        return UNANSWERED
    if not isinstance(payload, str) or not payload.strip():
        raise InvalidRequest(payload=["must be a string that is not blank"])
    return payload


def _schema(data: Mapping[str, Any], *, may_edit: bool) -> dict[str, Any]:
    match data["kind"]:
        case "tool_confirmation":
            return _APPROVAL if may_edit else _APPROVAL_AS_IT_IS
        case "form":
            return dict(data["schema"])
        case "authorization":
            return {"type": "boolean"}
    # The options are suggestions: any other text is an answer, too.
    options = data.get("options")
    return {"type": "string", "examples": options} if options else {"type": "string"}


def _decision(payload: Any) -> Mapping[str, Any]:
    if not isinstance(payload, dict) or not isinstance(payload.get("approved"), bool):
        raise InvalidRequest(payload=["must be an object with `approved`, true or false"])
    if not payload["approved"]:
        reason = payload.get("reason")
        return {"decision": "deny", **({"reason": reason} if isinstance(reason, str) else {})}
    if payload.get("editedArgs") is not None:
        return {"decision": "edit", "arguments": payload["editedArgs"]}
    return {"decision": "approve"}
