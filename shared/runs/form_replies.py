"""A person's reply to the form, or to the page to visit, that a tool requests during its call."""

from collections.abc import Mapping
from typing import Any

from arkloop.shared import json_text
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.json_schema import MAX_MATCHED, InvalidSchema, JsonSchema

#: The kinds of requests: fields to fill in, and a page to visit.
FORM, AUTHORIZATION = "form", "authorization"
KINDS = (FORM, AUTHORIZATION)
ACTIONS = ("accept", "decline", "cancel")
#: The reply in place of one that did not come in time.
NO_REPLY = '{"action": "cancel"}'
#: The replies of a page that reports back itself.
ACCEPTED, DECLINED = '{"action": "accept"}', '{"action": "decline"}'
_MAX_ERRORS = 5


def read(content: str) -> dict[str, Any]:
    """Parse the content of an input: `{"action", "content"?}`, or the action alone.

    Raises:
        InvalidRequest
    """
    said = content.strip()
    if said in ACTIONS:
        return {"action": said}
    try:
        reply = json_text.loads(said.encode("utf-8", "surrogatepass"))
    except json_text.NotJSON:
        raise _invalid('must be {"action": "accept" | "decline" | "cancel", "content"?}') from None
    except json_text.InvalidJSON as error:
        raise _invalid(str(error)) from None
    if not isinstance(reply, dict) or reply.get("action") not in ACTIONS:
        raise _invalid("`action` must be accept, decline or cancel")
    if unknown := set(reply) - {"action", "content"}:
        raise _invalid(f"unknown fields in the reply: {', '.join(sorted(unknown))}")
    if "content" in reply and reply["action"] != "accept":
        raise _invalid("`content` is only allowed with the action `accept`")
    return reply


def check(pending_input: Mapping[str, Any], content: str) -> None:
    """Check a reply to the open request. Raises: InvalidRequest: it cannot be passed on."""
    reply = read(content)
    if pending_input["kind"] == AUTHORIZATION and "content" in reply:
        raise _invalid("`content` is not allowed: the page has asked for it")
    if pending_input["kind"] == FORM and reply["action"] == "accept":
        given = reply.get("content")
        if not isinstance(given, dict):
            raise _invalid("`content` is required, an object that fits `schema`")
        if errors := _misfits(pending_input["schema"], given):
            raise InvalidRequest(content=errors)


def _misfits(schema: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    try:
        compiled = JsonSchema(schema)
    except InvalidSchema:
        return []  # it was usable when the server sent it: the server checks the reply, too
    work = compiled.work.product(given)
    if compiled.work.is_too_much(given, work):
        return ["is too large to validate"]
    # The server checks the patterns, too.
    is_short = compiled.matched_characters(given, MAX_MATCHED) <= MAX_MATCHED
    errors = []
    for error in compiled.errors(given, work, with_patterns=is_short)[:_MAX_ERRORS]:
        path = ".".join(map(str, error.instance_path))
        errors.append(f"{path}: {error.message}" if path else error.message)
    return errors


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(content=[why])
