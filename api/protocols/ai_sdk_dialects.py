"""Versions of the AI SDK's client: the chunks that they know, and the waits that they answer."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from arkloop.shared.runs import pending_calls

_VERSION = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,6}))?(?:\.([0-9]{1,6}))?(?:[-+].*)?")


class Dialect(NamedTuple):
    """The chunks that a client's schema knows: any other ends its stream with an error."""

    finish_reasons: bool = True  # 6.0.0
    approvals: bool = True  # 6.0.0
    approval_responses: bool = False  # 7.0.0
    resets: bool = False  # 7.0.70
    org_approvals: bool = True  # the reader may reply to approvals that are reserved for the org

    @classmethod
    def of(cls, version: str) -> "Dialect | None":
        """Return the dialect of a version of `ai`; None for text that is not one from 5 on."""
        match = _VERSION.fullmatch(version)
        number = tuple(int(part or 0) for part in match.groups()) if match else (0,)
        if number < (5,):
            return None
        return cls(number >= (6,), number >= (6,), number >= (7,), number >= (7, 0, 70))


#: Without a version: `ai` 6 and 7 of any version, and 5 unless a call requires approval.
DEFAULT = Dialect(finish_reasons=False)
NEWEST = Dialect(True, True, True, True)


def ends_response(data: Mapping[str, Any], dialect: Dialect) -> bool:
    """Return whether the client answers this `run.waiting_for_input` with a new chat request."""
    if data["kind"] == pending_calls.KIND:
        return bool(client_calls(data))
    if data.get("tool_call_id") is None:
        return False
    if data["kind"] != "tool_confirmation":
        return bool(data["kind"] == "question")
    return dialect.approvals and (dialect.org_approvals or data.get("approved_by") != "org")


def client_calls(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the calls of a `run.waiting_for_input` whose results the client sends, not the org."""
    return [call for call in data.get("calls") or () if call.get("result_from") != "http"]
