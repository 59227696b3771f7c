"""Outputs that must fit a schema: how they are read, checked, and asked for again."""

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from arkloop.shared.events.types import RunCost
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent.model_call import Reply
from arkloop.worker.agent.structured_output import (
    MAX_REPAIRS,
    OutputSchema,
    as_text,
    check_attempts,
    repair_request,
)
from arkloop.worker.contract.messages import AssistantMessage, ToolCall, ToolSpec, TurnEnd
from arkloop.worker.contract.outcomes import RunFailure
from arkloop.worker.providers.output_modes import FINAL_TOOL
from arkloop.worker.providers.partial_calls import PartialCalls
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.worker.recorded_run import chain_of, request

CITY = OutputSchema(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "inhabitants": {"type": "integer"}},
        "required": ["name"],
        "additionalProperties": False,
    }
)


def errors(content: str, stop_reason: str = "stop", schema: OutputSchema = CITY) -> list[str]:
    output = schema.read(content, stop_reason)
    assert (output.value is None) == bool(output.errors)
    return list(output.errors)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"name": "Rome"}', []),
        (' {"name": "Rome", "inhabitants": 2800000}\n', []),
        ("{}", ["Missing property 'name'."]),
        ("[]", ["The output must be of type object."]),
        ('{"name": 1}', ["The property 'name' must be of type string."]),
        ('{"name": "Rome", "river": "Tiber"}', ["Unknown property 'river'."]),
        ('{"name": "Rome", "name": "Roma"}', ["The property 'name': duplicate field."]),
    ],
)
def test_an_answer_is_checked(content: str, expected: list[str]) -> None:
    """Sentences about what does not fit, for the model."""
    assert expected == errors(content, "stop")


@pytest.mark.parametrize(
    "content", ["", "Rome", '```json\n{"name": "Rome"}\n```', '{"name": "Ro', '{"name": NaN}']
)
def test_text_that_is_no_json_is_no_output(content: str) -> None:
    """Nothing is cut off, or repaired here: what the thread keeps is what the model wrote."""
    [error] = errors(content, "stop")
    assert "not valid JSON" in error


def test_what_cannot_be_stored_is_no_output() -> None:
    """NUL, half a character, a number without an end, and nesting beyond measure."""
    for value in ('"\\u0000"', '"\\ud800"', "1e999", "9" * 2000, "[" * 70 + "]" * 70):
        assert errors(f'{{"a": {value}}}', schema=OutputSchema({"type": "object"})), value


def test_a_cut_off_answer_is_asked_to_be_brief() -> None:
    """An answer that is whole is the output, though it was cut off."""
    first, *others = errors('{"name": "Rom', "length")
    assert "cut off" in first and others
    assert [] == errors('{"name": "Rome"}', "length")


def test_a_refusal_is_not_asked_again() -> None:
    """The run fails at once, also if the refusal is JSON."""
    for content in ("I cannot help with that.", '{"name": "Rome"}'):
        with pytest.raises(RunFailure, match="refused") as caught:
            errors(content, "content_filter")
        assert "output.invalid" == caught.value.code


def reply_with(*calls: ToolCall, content: str = "") -> Reply:
    return Reply(
        request=request("x"),
        message=AssistantMessage(content, calls),
        end=TurnEnd("tool_calls", calls),
        usage=Usage(),
        cost=RunCost(Usage(), Decimal(0)),
    )


@pytest.mark.parametrize(
    ("arguments", "expected"), [({"name": "Málaga"}, '{"name": "Málaga"}'), ("{broken", "{broken")]
)
def test_a_call_of_the_tool_alone_is_an_answer(arguments: Any, expected: str) -> None:
    """Its arguments are the text, instead of what was said before the call."""
    call = ToolCall("a", FINAL_TOOL, arguments)

    said = as_text(reply_with(call, content="Here it is:"))

    assert said is not None
    assert (AssistantMessage(expected), TurnEnd("stop")) == (said.message, said.end)
    full = replace(reply_with(call), end=TurnEnd("length", (call,), is_context_full=True))
    cut_off = as_text(full)
    assert cut_off is not None and TurnEnd("length", is_context_full=True) == cut_off.end


def test_commentary_is_no_part_of_the_answer() -> None:
    """A vendor may mark the answer: the turn is that text alone, if it has more."""
    rome = '{"name": "Rome"}'
    end = TurnEnd("stop", final_answer=rome)
    reply = replace(reply_with(content=f"From memory.\n\n{rome}"), end=end)

    said = as_text(reply)

    assert said is not None
    assert (AssistantMessage(rome), end) == (said.message, said.end)
    assert as_text(said) is None


@pytest.mark.parametrize("others", [[], ["calculator"], [FINAL_TOOL, "calculator"]])
def test_other_calls_are_no_answer(others: list[str]) -> None:
    """Calls among which is the tool's own are no answer either: each of them gets a result."""
    assert as_text(reply_with(*(ToolCall(name, name, {}) for name in others))) is None


def test_the_last_of_several_calls_of_the_tool_is_the_answer() -> None:
    """A model that calls the tool twice has changed its mind, or repeats itself."""
    calls = [ToolCall(name, FINAL_TOOL, {"name": name}) for name in ("Milan", "Rome")]

    said = as_text(reply_with(*calls))

    assert said is not None and '{"name": "Rome"}' == said.message.content


def test_other_calls_are_left_out_where_only_an_answer_was_asked_for() -> None:
    """No call of a run's last reply is made, so the output in it is all that there can be."""
    calls = (ToolCall("a", FINAL_TOOL, {"name": "Rome"}), ToolCall("b", "calculator", {}))
    reply = reply_with(*calls)

    said = as_text(replace(reply, request=replace(reply.request, answer_only=True)))

    assert said is not None and '{"name": "Rome"}' == said.message.content


def test_the_text_of_the_arguments_is_the_answer_as_the_model_wrote_it() -> None:
    """What reading and writing JSON again would change stays, or is refused as in text."""
    written = '{"name":"M\\u00e1laga",  "inhabitants":12345678901234567890.123}'
    for text in (written, '{"name": "Rome", "name": "Roma"}', '{"name": "\\u0000"}'):
        calls = PartialCalls(0)
        for piece in (text[:5], text[5:]):
            calls.add(0, "a", FINAL_TOOL, piece)

        said = as_text(reply_with(*calls.whole()))

        assert said is not None and text == said.message.content
        assert text == written or errors(said.message.content)


def test_arguments_that_are_encoded_twice_are_decoded() -> None:
    """Some servers send the object as a text in JSON."""
    calls = PartialCalls(0)
    calls.add(0, "a", FINAL_TOOL, json.dumps('{"name": "Rome"}'))

    said = as_text(reply_with(*calls.whole()))

    assert said is not None and '{"name": "Rome"}' == said.message.content


def test_a_model_without_tools_may_call_the_final_one() -> None:
    """A persona may forbid tools by `tool_choice`: the output is not one of them."""
    chain = chain_of(ScriptedProvider())
    calculator = ToolSpec("calculator", "Counts.", {"type": "object"})
    asked = request("x", tools=[calculator], settings={"tool_choice": "none", "seed": 1})

    native = CITY.requested(asked, chain)
    chain.drop_settings(["output_schema"])
    by_tool = CITY.requested(asked, chain)

    assert ("none", [calculator]) == (native.settings["tool_choice"], native.tools)
    assert {"tool_choice": {"name": FINAL_TOOL}, "seed": 1} == by_tool.settings
    assert [FINAL_TOOL] == [tool.name for tool in by_tool.tools]


def test_the_final_tool_has_a_schema_that_every_vendor_accepts() -> None:
    """The output is checked against the schema of the persona all the same."""
    text, either = {"type": "string"}, [{"required": ["name"]}, {"required": ["code"]}]
    schema = OutputSchema({"type": "object", "properties": {"name": text}, "anyOf": either})
    chain = chain_of(ScriptedProvider())
    chain.drop_settings(["output_schema"])

    [tool] = schema.requested(request("x"), chain).tools

    assert {"type": "object", "properties": {"name": text}} == tool.parameters
    assert errors("{}", schema=schema)


def test_two_repairs_are_allowed() -> None:
    """The third answer that does not fit ends the run, with the reasons."""
    reasons = [["Unknown property 'x'."]] * MAX_REPAIRS
    check_attempts([])
    check_attempts(reasons)
    with pytest.raises(RunFailure, match=r"in 3 attempts\. Missing property 'name'\.") as caught:
        check_attempts([*reasons, ["Missing property 'name'."]])
    assert ("output.invalid", False) == (caught.value.code, caught.value.retryable)


def test_the_model_reads_why() -> None:
    """Each reason, and what to do."""
    request = repair_request(["Missing property 'name'.", "Unknown property 'x'."])
    assert "\n- Missing property 'name'.\n- Unknown property 'x'.\n" in request


def test_a_prompt_shows_the_schema() -> None:
    """Servers exist that constrain the output without showing the model why."""
    prompt = CITY.extended("Be kind.")
    assert prompt.startswith("Be kind.\n\n")
    shown: Any = json.loads(prompt.splitlines()[-1])
    assert CITY.schema == shown
    assert not CITY.extended("").startswith("\n")
