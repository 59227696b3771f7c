"""Replies of people to forms and pages that tools request during their calls."""

import json
from typing import Any

import pytest

from arkloop.shared.errors import InvalidRequest
from arkloop.shared.runs import form_replies

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORM = {"kind": "form", "schema": SCHEMA}
PAGE = {"kind": "authorization", "url": "https://example.com"}


@pytest.mark.parametrize(
    ("request_", "content"),
    [
        (FORM, {"action": "accept", "content": {"n": 1}}),
        (FORM, {"action": "decline"}),
        (FORM, "cancel"),
        (PAGE, "accept"),
        (PAGE, {"action": "accept"}),
    ],
)
def test_a_reply_that_fits_is_taken(request_: dict[str, Any], content: Any) -> None:
    """An action may be given alone, where no fields have to be filled in."""
    text = content if isinstance(content, str) else json.dumps(content)

    form_replies.check(request_, text)

    expected = {"action": content} if isinstance(content, str) else content
    assert expected == form_replies.read(text)


@pytest.mark.parametrize(
    ("request_", "content", "why"),
    [
        (FORM, "sure", "must be"),
        (FORM, "accept", "`content` is required"),
        (FORM, '{"action": "accept", "content": []}', "`content` is required"),
        (FORM, '{"action": "accept", "content": {"n": "1"}}', "n: "),
        (FORM, '{"action": "accept", "content": {}}', "required"),
        (FORM, '{"action": "decline", "content": {"n": 1}}', "only allowed"),
        (FORM, '{"action": "accept", "action": "cancel"}', "duplicate"),
        (FORM, '{"action": "accept", "content": {"n": 1}, "x": 1}', "unknown fields"),
        (FORM, '{"action": "eat"}', "must be accept"),
        (FORM, "[1]", "must be accept"),
        (FORM, '{"action": ["accept"]}', "must be accept"),
        (PAGE, '{"action": "accept", "content": {}}', "not allowed"),
    ],
)
def test_a_reply_that_does_not_fit_is_refused(
    request_: dict[str, Any], content: str, why: str
) -> None:
    """The person can correct it: the run keeps waiting."""
    with pytest.raises(InvalidRequest) as refused:
        form_replies.check(request_, content)

    assert why in str(refused.value.details)


def test_a_request_that_nobody_answers_is_cancelled() -> None:
    """The tool reads that no choice was made."""
    assert {"action": "cancel"} == form_replies.read(form_replies.NO_REPLY)
