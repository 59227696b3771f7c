"""Replies of people to forms and pages that tools request during their calls."""

import json
from typing import Any

import pytest

from arkloop.shared.errors import InvalidRequest
from arkloop.shared.runs import form_replies
from tests.processor_time import is_within

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


def of(schema: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"kind": "form", "schema": {"type": "object", "properties": {"a": schema}, **parts}}


SLOW = {"pattern": "(x{1,23}){1,9}y"}
NUMBERS = {"anyOf": [{"const": number} for number in range(900)]}


@pytest.mark.parametrize(
    ("form", "value", "why"),
    [
        (of({"items": NUMBERS}), [7777] * 5_000, "too large to validate"),
        (of(NUMBERS), 7777, "a: "),
        (of({"items": {"anyOf": [{"const": 1}] * 9}}), [7777] * 6_000, "a.0: "),
        (of({"allOf": [SLOW] * 32, "maxLength": 9}), "x" * 32_000, "a: "),
    ],
)
def test_no_form_makes_the_check_of_a_reply_long(
    form: dict[str, Any], value: Any, why: str
) -> None:
    """A web process serves nothing meanwhile, and the schema is that of any server."""
    content = json.dumps({"action": "accept", "content": {"a": value}}, separators=(",", ":"))
    assert len(content) <= 32_768

    def refused() -> None:
        with pytest.raises(InvalidRequest) as error:
            form_replies.check(form, content)
        assert why in str(error.value.details)

    assert is_within(1.0, refused)


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "not"])
def test_alternatives_do_not_make_the_check_of_a_pattern_long(keyword: str) -> None:
    """At each level of them, the text would be matched again."""
    schema: dict[str, Any] = SLOW
    for _ in range(16):
        schema = {keyword: schema if keyword == "not" else [schema]}
    content = {"action": "accept", "content": {"a": "x" * 19_990}}

    assert is_within(0.5, lambda: form_replies.check(of(schema), json.dumps(content)))


def test_text_without_a_pattern_does_not_keep_others_from_being_matched() -> None:
    """A form may have a long comment beside a short code."""
    form = of({"pattern": "^[0-9]+$"})
    content = {"action": "accept", "content": {"a": "x", "comment": "y" * 30_000}}

    with pytest.raises(InvalidRequest):
        form_replies.check(form, json.dumps(content))


def test_a_long_reply_is_checked_without_patterns() -> None:
    """The server checks these itself; all else is checked as in a short reply."""
    form = of(SLOW, required=["a"])
    long = {"action": "accept", "content": {"a": "x" * 32_000}}

    form_replies.check(form, json.dumps(long))

    for content in ({"a": "x"}, {"b": "x" * 32_000}):
        with pytest.raises(InvalidRequest):
            form_replies.check(form, json.dumps({"action": "accept", "content": content}))


def test_a_request_that_nobody_answers_is_cancelled() -> None:
    """The tool reads that no choice was made."""
    assert {"action": "cancel"} == form_replies.read(form_replies.NO_REPLY)
