"""Replies to a tool call that requires approval."""

import json
from typing import Any

import pytest

from arkloop.shared.agents.approvals import ApprovalReply, read
from arkloop.shared.errors import InvalidRequest

APPROVED = ApprovalReply(approved=True)


@pytest.mark.parametrize(
    "said",
    [
        *("yes", "Y", " approve\n", '{"decision": "approve"}'),
        *(
            "approved",
            "Approved!",
            "ok",
            "OK.",
            "okay",
            "yes please",
            "Yes, please.",
            "sure, thanks",
        ),
        *("go ahead", "Yes, go ahead!", "please do it", "allow"),
    ],
)
def test_a_short_yes_approves(said: str) -> None:
    """Politeness, case and punctuation make no difference."""
    assert APPROVED == read(said)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        *(
            (said, said)
            for said in ("no", "No!", "n", "nope", "not before noon", "deny", "rejected")
        ),
        ("no, use the other account", "no, use the other account"),
        ("Don’t do it", "Don’t do it"),
        ("do not", "do not"),
        ("stop", "stop"),
        ('{"decision": "deny"}', ""),
        ('{"decision": "deny", "reason": "too dear"}', "too dear"),
        ('{"decision": "deny", "reason": null}', ""),
    ],
)
def test_a_reply_that_begins_with_a_no_denies_and_is_the_reason(said: str, reason: str) -> None:
    """The whole reply is shown to the model."""
    assert ApprovalReply(approved=False, reason=reason) == read(said)


@pytest.mark.parametrize(
    "said",
    [
        *(
            "maybe",
            "what does it do?",
            "yes, but only tomorrow",
            "ok to the first one",
            "approve?no",
        ),
        *("I approve of nothing", "yes no", "ok " * 1_000, "…", "👍", "{" * 100_000),
        *('{"answer": "yes"}', "{not JSON", '["approve"]', "true"),
    ],
)
def test_anything_else_is_unclear(said: str) -> None:
    """A person who is not sure whether they have agreed has not, and is asked again."""
    assert ApprovalReply(approved=False, reason=said.strip(), is_clear=False) == read(said)


def test_arguments_can_be_given_in_place_of_the_models() -> None:
    """Any object; whether it fits the tool is seen where the tool is."""
    said = json.dumps({"decision": "edit", "arguments": {"url": "https://example.com"}})

    assert ApprovalReply(approved=True, arguments={"url": "https://example.com"}) == read(said)


@pytest.mark.parametrize(
    "document",
    [
        {"decision": "maybe"},
        {"decision": None},
        {"decision": ["approve"]},
        {"decision": "edit"},
        {"decision": "edit", "arguments": "x"},
        {"decision": "approve", "arguments": {}},
        {"decision": "deny", "arguments": {}},
        {"decision": "deny", "reason": 1},
        {"decision": "approve", "note": "x"},
    ],
)
def test_a_decision_of_the_wrong_form_is_refused(document: dict[str, Any]) -> None:
    """It is not taken for a denial: the person can say it again."""
    with pytest.raises(InvalidRequest) as refused:
        read(json.dumps(document))

    assert ["content"] == list(refused.value.details)


@pytest.mark.parametrize(
    "said",
    [
        "edit",
        '{"decision": "deny", "decision": "approve"}',
        '{"decision": "edit", "arguments": {"x": NaN}}',
        '{"decision": "edit", "arguments": {"x": 1, "x": 2}}',
        '{"decision": "edit", "arguments": {"x": ' + "9" * 5_000 + "}}",
        '{"decision": "edit", "arguments": ' + '{"x":' * 200 + "1" + "}" * 201,
    ],
)
def test_what_means_more_than_one_thing_is_refused(said: str) -> None:
    """It would be an approval for some and a denial for others."""
    with pytest.raises(InvalidRequest):
        read(said)


@pytest.mark.parametrize("depth", [65, 480, 700, 950, 5400])
@pytest.mark.parametrize("field", ["arguments", "reason", "decision", "other"])
def test_what_is_nested_too_deep_is_refused(field: str, depth: int) -> None:
    """However deep: it is neither an internal error nor a denial. The deepest fills a body."""
    nested = '{"a":' * depth + "1" + "}" * depth
    said = f'{{"decision": "edit", "{field}": {nested}}}'

    with pytest.raises(InvalidRequest) as refused:
        read(said)

    assert ["content"] == list(refused.value.details)


def test_arguments_may_be_as_deep_as_a_body() -> None:
    """They may have 64 levels of their own."""
    said = '{"decision": "edit", "arguments": ' + '{"a":' * 64 + "1" + "}" * 65

    assert read(said).approved


@pytest.mark.parametrize(
    "value", ['"a\\u0000"', '["\\ud83d"]', '{"\\u0000": 1}', "1e999", "-1e999"]
)
def test_arguments_that_would_have_to_be_changed_are_refused(value: str) -> None:
    """NUL, lone surrogates and infinity are nothing for Postgres or a provider."""
    with pytest.raises(InvalidRequest) as refused:
        read(f'{{"decision": "edit", "arguments": {{"x": {value}}}}}')

    assert ["content"] == list(refused.value.details)


def test_arguments_are_taken_to_the_letter() -> None:
    """Pairs of surrogates and large numbers are nothing special."""
    said = (
        '{"decision": "edit", "arguments": {"x": ["\\ud83d\\ude00", 1e300, 12345678901234567890]}}'
    )

    assert {"x": ["\U0001f600", 1e300, 12345678901234567890]} == read(said).arguments
