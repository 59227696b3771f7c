"""Overrides of a run: which values a persona allows, and the persona that they make."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from arkloop.shared.catalog import client_tools, personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import InvalidRequest, PersonaNotFound
from arkloop.shared.runs import overrides

ROUTE = Route(id="r", provider="scripted", model="m", max_output_tokens=500)
OPEN = Persona(
    key="open",
    version="1",
    system_prompt="You serve {{customer}}.",
    overrides=personas.OVERRIDES,
    max_steps=10,
    max_cost_usd=Decimal("0.5"),
)


def applied(**given: Any) -> Persona:
    """Check the overrides and apply what is stored of them."""
    return overrides.apply(OPEN, overrides.check(OPEN, ROUTE, given))


def problems(persona: Persona = OPEN, **given: Any) -> Mapping[str, Any]:
    """Return what is wrong with the overrides; the one variable has a value by default."""
    with pytest.raises(InvalidRequest) as refused:
        overrides.check(persona, ROUTE, {"variables": {"customer": "Ada"}, **given})
    return refused.value.details


def test_variables_are_filled_into_the_prompt_and_instructions_follow() -> None:
    """A value that looks like a placeholder stays as it is, and so do instructions."""
    persona = applied(
        instructions="Greet {{customer}}.", variables={"customer": "{{me}} & {{customer}}"}
    )

    assert "You serve {{me}} & {{customer}}.\n\nGreet {{customer}}." == persona.system_prompt


def test_a_variable_without_a_value_is_refused() -> None:
    """A prompt never reaches a model with a placeholder in it; a value too many does no harm."""
    required = {"variables.customer": ["is required by the persona's prompt"]}

    assert required == problems(variables=None)
    assert required == problems(variables={"custmer": "Ada"})
    assert "You serve Ada." == applied(variables={"customer": "Ada", "extra": "-"}).system_prompt


def test_a_prompt_with_braces_is_left_alone_without_variables() -> None:
    """A persona that does not allow variables has no placeholders."""
    literal = replace(OPEN, overrides=("instructions",))

    assert overrides.check(literal, ROUTE, {}) is None


def test_limits_can_be_lowered() -> None:
    """A limit that the persona does not have can be set; null is left out."""
    limits = {
        "max_steps": 3,
        "max_cost_usd": 0.1,
        "max_output_tokens": 500,
        "max_equal_turns": None,
    }

    persona = applied(variables={"customer": "Ada"}, limits=limits)

    assert (
        replace(
            OPEN,
            system_prompt="You serve Ada.",
            max_steps=3,
            max_cost_usd=Decimal("0.1"),
            max_output_tokens=500,
        )
        == persona
    )


def test_model_settings_are_merged_with_the_personas() -> None:
    """Each counts before the persona's; a null stands for the vendor's default."""
    of_persona = {"temperature": 0.5, "seed": 1}
    persona = replace(OPEN, system_prompt="", model_settings=of_persona)
    given = {"model_settings": {"seed": None, "stop": "END"}}

    effective = overrides.apply(persona, overrides.check(persona, ROUTE, given))

    assert {"temperature": 0.5, "seed": None, "stop": ["END"]} == effective.model_settings


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"max_steps": 11}, "max_steps"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": "3"}, "max_steps"),
        ({"max_cost_usd": 0.51}, "max_cost_usd"),
        ({"max_output_tokens": 501}, "max_output_tokens"),  # the route's
        ({"timeout_seconds": 901}, "timeout_seconds"),
        ({"max_equal_turns": 1}, "max_equal_turns"),
        ({"max_cost_usd_per_month": 1}, "max_cost_usd_per_month"),
    ],
)
def test_a_limit_is_never_raised(limits: dict[str, Any], field: str) -> None:
    """The error names the limit, and so does one for a value of a wrong kind."""
    assert [f"limits.{field}"] == list(problems(limits=limits))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"instructions": " "}, "instructions"),
        ({"instructions": ["x"]}, "instructions"),
        ({"instructions": "ä" * 40_000}, "instructions"),
        ({"variables": []}, "variables"),
        ({"variables": {f"v{i}": "" for i in range(65)}}, "variables"),
        ({"variables": {"a b": "x", "customer": "Ada"}}, "variables.a b"),
        ({"variables": {"customer": 1}}, "variables.customer"),
        ({"limits": 3}, "limits"),
        ({"model_settings": 3}, "model_settings"),
        ({"model_settings": {"seed": "x"}}, "model_settings.seed"),
        ({"tools": [{}]}, "tools"),
    ],
)
def test_a_value_of_another_form_is_refused(given: dict[str, Any], field: str) -> None:
    """The error names the field."""
    assert [field] == list(problems(**given))


@pytest.mark.parametrize("unused", [{"x": {"type": "text"}}, [1]])
def test_the_output_of_a_run_has_a_schema_that_vendors_accept(unused: Any) -> None:
    """They would refuse each request of the run, though nothing refers to what is invalid."""
    assert ["output_schema"] == list(problems(output_schema={"type": "object", "$defs": unused}))


def test_a_tool_of_a_run_has_a_schema_that_vendors_accept() -> None:
    """They would refuse each request of the run, though nothing refers to what is invalid."""
    parameters = {"type": "object", "$defs": {"x": {"type": "text"}}}
    tool = {"name": "own", "description": "x", "parameters": parameters, "client": True}

    assert ["tools"] == list(problems(tools=[tool]))


@pytest.mark.parametrize("name", ["calculator", "ask_user", "read_result", "own", "a b", "x" * 65])
def test_a_tool_of_a_run_has_a_name_of_its_own(name: str) -> None:
    """The names of built-in tools and of the persona's own client tools are in use."""
    tool = {"name": "own", "description": "x", "parameters": {"type": "object"}, "client": True}
    persona = replace(OPEN, client_tools=client_tools.read([tool]))

    assert ["tools"] == list(problems(persona, tools=[{**tool, "name": name}]))
    assert ["tools"] == list(problems(replace(OPEN, agent="mine"), tools=[tool]))


@pytest.mark.parametrize("name", ["max_equal_turns", "max_output_tokens"])
def test_a_limit_without_effect_is_refused(name: str) -> None:
    """A custom agent heeds none of the loop alone; the others count for it, too."""
    agent = replace(OPEN, agent="mine")

    assert [f"limits.{name}"] == list(problems(agent, limits={name: 5, "max_steps": 5}))


def test_values_cannot_make_a_prompt_of_any_length() -> None:
    """One value may stand in many places of the prompt."""
    repeated = replace(OPEN, system_prompt="{{customer}}" * 100)

    assert ["variables"] == list(problems(repeated, variables={"customer": "x" * 10_000}))


def test_a_persona_allows_what_it_lists() -> None:
    """All that is not allowed is named at once."""
    closed = replace(OPEN, overrides=("limits",))

    found = problems(closed, instructions="x", limits={"max_steps": 1}, variables={"customer": ""})

    assert {"instructions", "variables"} == found.keys()
    assert found["instructions"] == ["the persona 'open@1' does not allow this override"]


def test_an_override_of_a_later_release_is_not_ignored() -> None:
    """The worker of this one leaves such a run to another."""
    with pytest.raises(PersonaNotFound):
        overrides.apply(OPEN, {"later": 1})
