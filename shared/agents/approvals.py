"""A user's reply to a tool call that requires approval."""

import re
from dataclasses import dataclass
from typing import Any

from arkloop.shared import json_text
from arkloop.shared.errors import InvalidRequest

#: Whole replies, in lower case and without politeness and punctuation.
APPROVALS = frozenset(
    {
        *("y", "yes", "yeah", "yep", "ok", "okay", "sure", "fine", "agreed", "proceed"),
        *("approve", "approved", "allow", "allowed", "accept", "accepted", "confirm", "confirmed"),
        *("go ahead", "do it", "yes go ahead", "yes do it", "ok go ahead", "ok do it"),
    }
)
#: First words of a reply that denies; the rest of it may be the reason.
_DENIALS = frozenset(
    {
        *("n", "no", "nope", "nah", "not", "never", "don't", "dont", "stop", "cancel", "abort"),
        *("deny", "denied", "reject", "rejected", "decline", "declined", "refuse", "refused"),
        *("disapprove", "disallow", "forbid", "wait"),
    }
)
_POLITENESS = re.compile(r"\b(please|pls|thanks|thank you)\b|[.,!]")
_MAX_WORDS = 100
_FIELDS = {"decision", "reason", "arguments"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalReply:
    """A user's reply: the call is made, perhaps with other `arguments`, or it is denied."""

    approved: bool
    reason: str = ""  # of a denial, for the model
    arguments: dict[str, Any] | None = None
    is_clear: bool = True  # False: it neither allows nor denies the call, so ask again

    @property
    def decision(self) -> str:
        """The reply in one word: approve, edit, deny or unclear."""
        if self.approved:
            return "approve" if self.arguments is None else "edit"
        return "deny" if self.is_clear else "unclear"


def read(content: str) -> ApprovalReply:
    """Parse the content of an input.

    A short reply such as `yes`, `ok` or `approved, thanks` allows the call. A reply that begins
    with `no` or another word of `_DENIALS` denies it and is the reason. A JSON object with
    `decision` says it in full: `{"decision": "approve" | "deny" | "edit", "reason"?,
    "arguments"?}`. Anything else is unclear: it does not allow the call.

    Raises:
        InvalidRequest: an object with `decision` that says something else; JSON that means more
            than one thing, or is too deep to be read; `edit` without arguments, or with some that
            cannot be stored as they are.
    """
    said = content.strip()
    document = _document(said) if said.startswith("{") else None
    if not isinstance(document, dict) or "decision" not in document:
        if said.lower() == "edit":
            raise _invalid('to edit, send {"decision": "edit", "arguments": {…}}')
        return _in_words(said)
    if unknown := set(document) - _FIELDS:
        raise _invalid(f"unknown fields in the decision: {', '.join(sorted(unknown))}")
    reason = document.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise _invalid("the decision's `reason` must be a string")
    arguments = document.get("arguments")
    match document["decision"]:
        case "edit":
            if not isinstance(arguments, dict):
                raise _invalid("the decision `edit` requires `arguments`, an object")
            return ApprovalReply(approved=True, arguments=arguments)
        case "approve" | "deny" if arguments is not None:
            raise _invalid("`arguments` is only allowed with the decision `edit`")
        case "approve":
            return ApprovalReply(approved=True)
        case "deny":
            return ApprovalReply(approved=False, reason=reason or "")
    raise _invalid("`decision` must be approve, deny or edit")


def _in_words(said: str) -> ApprovalReply:
    # Anything longer has no approval in it, and need not be normalized.
    words = " ".join(_POLITENESS.sub(" ", said[:_MAX_WORDS].lower().replace("\u2019", "'")).split())
    if words in APPROVALS and len(said) <= _MAX_WORDS:
        return ApprovalReply(approved=True)
    first = words.partition(" ")[0]
    return ApprovalReply(
        approved=False, reason=said, is_clear=first in _DENIALS or words.startswith("do not")
    )


def _document(said: str) -> Any:
    """Return the JSON that a reply consists of, None if it is not JSON.

    What is made must be what was approved, to the letter: so what cannot be stored is refused.
    """
    try:
        return json_text.loads(
            said.encode("utf-8", "surrogatepass"),
            max_depth=json_text.MAX_DEPTH + 1,  # `arguments` alone may be as deep as a body
            max_values=None,
            takes_long_integers=True,
        )
    except json_text.NotJSON:
        return None
    except json_text.InvalidJSON as error:
        raise _invalid(str(error)) from None


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(content=[why])
