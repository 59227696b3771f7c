"""Personas: those that come with the code, how one is found, and what one may be."""

from decimal import Decimal
from importlib import resources
from typing import Any

import pytest

from arkloop.shared.catalog import personas
from arkloop.shared.catalog.personas import (
    PERSONA_ID,
    InvalidPersona,
    Persona,
    from_file,
    newest,
    read,
)


def test_the_builtin_personas_are_those_of_the_contract() -> None:
    """Their tools, and which of them require approval."""
    tools = ("ask_user", "current_time", "calculator")
    contract = {
        "assistant@1": (tools, frozenset()),
        "careful@1": (tools, frozenset({"current_time", "calculator"})),
        "plain@1": ((), frozenset()),
    }
    there = {id_: (p.tools, p.require_approval) for id_, p in personas.builtin().items()}
    assert contract == {id_: there.get(id_) for id_ in contract}
    assert all(persona.system_prompt for persona in personas.builtin().values())


def test_the_limits_are_those_of_the_contract() -> None:
    """32 steps, 15 minutes, a day for an answer."""
    persona = personas.builtin()["assistant@1"]

    assert (32, 900, 86_400) == (
        persona.max_steps,
        persona.timeout_seconds,
        persona.input_expires_seconds,
    )


def test_versions_are_ordered_as_numbers() -> None:
    """Version 10 is newer than 9."""
    assert "10" == newest({"9", "10", "rc"})


def test_versions_that_are_no_numbers_sort_before_all_numbers() -> None:
    """The newest of `0`, `draft` and `rc` is `0`, and of words the last by text."""
    assert "0" == newest({"0", "draft", "rc"})
    assert "rc" == newest({"draft", "rc"})


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("a", True),
        ("a@1", True),
        ("A9._:-@1.0", True),
        ("x" * 64 + "@" + "y" * 64, True),
        ("x" * 65, False),
        ("a@", False),
        ("@1", False),
        ("-a", False),
        ("a@1@2", False),
        ("a b", False),
        ("é", False),
        ("a\n", False),
    ],
)
def test_ids_have_one_form(text: str, fits: bool) -> None:
    """An id is a key, and perhaps a version of the same form."""
    assert fits == (PERSONA_ID.fullmatch(text) is not None)


# ---- definitions ---------------------------------------------------------------------


def test_a_definition_has_every_field() -> None:
    """A definition in JSON may contain every field, and missing ones get their defaults."""
    definition = {
        "system_prompt": "Help.",
        "route_id": "scripted",
        "fallback_route_ids": ["b", "a"],
        "tools": ["calculator", "http_fetch"],
        "mcp": ["time"],
        "mcp_tool_search": True,
        "require_approval": ["http_fetch", "get_time"],
        "approved_by": "org",
        "max_steps": 5,
        "max_output_tokens": 100,
        "max_result_tokens": 256,
        "compaction": "summary",
        "model_settings": {"temperature": 1, "seed": None},
        "max_cost_usd": 0.1,
        "max_cost_usd_per_month": 20,
        "timeout_seconds": 1.5,
        "input_expires_seconds": 60,
        "on_input_expired": "continue",
        "overrides": ["variables", "limits"],
        "on_limit": "fail",
    }

    expected = Persona(
        key="p",
        version="1",
        system_prompt="Help.",
        route_id="scripted",
        fallback_route_ids=("b", "a"),
        tools=("calculator", "http_fetch"),
        mcp=("time",),
        mcp_tool_search=True,
        require_approval=frozenset({"http_fetch", "get_time"}),
        approved_by="org",
        max_steps=5,
        max_output_tokens=100,
        max_result_tokens=256,
        compaction="summary",
        model_settings={"temperature": 1.0, "seed": None},
        max_cost_usd=Decimal("0.1"),
        max_cost_usd_per_month=Decimal(20),
        timeout_seconds=1.5,
        input_expires_seconds=60.0,
        on_input_expired="continue",
        overrides=("variables", "limits"),
        on_limit="fail",
    )
    assert expected == read("p", "1", definition)
    assert Persona(key="p", version="1") == read("p", "1", {})
    assert Persona(key="p", version="1") == read("p", "1", dict.fromkeys(definition))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("prompt", "x", "unknown field"),
        ("agent", "a b", "must match"),
        ("system_prompt", 1, "must be a string"),
        ("system_prompt", "é" * 32_769, "at most 65536 bytes"),
        ("route_id", "a b", "must match"),
        ("route_id", 1, "must be a string"),
        ("fallback_route_ids", "a", "must be a list"),
        ("fallback_route_ids", ["a", "a"], "duplicate entry 'a'"),
        ("fallback_route_ids", list("abcdefghi"), "at most 8 entries"),
        ("tools", "calculator", "must be a list"),
        ("tools", ["a b"], "must match"),
        ("tools", [str(n) for n in range(129)], "at most 128 entries"),
        ("tools", [1], "must be a string"),
        ("mcp", ["Time"], "must match"),
        ("mcp_tool_search", 1, "must be true or false"),
        ("mcp", [str(n) for n in range(17)], "at most 16 entries"),
        ("require_approval", ["calculator"], "'calculator' is not a tool of this persona"),
        ("require_approval", ["**"], "must match"),
        ("max_steps", 0, "must be an integer from 1 to 256"),
        ("max_steps", 257, "must be an integer from 1 to 256"),
        ("max_steps", 1.0, "must be an integer from 1 to 256"),
        ("max_steps", True, "must be an integer from 1 to 256"),
        ("max_output_tokens", 1_000_001, "must be an integer"),
        ("max_result_tokens", 255, "must be an integer from 256 to 1000000"),
        ("max_cost_usd", -1, "must be between 0 and 1,000,000 USD"),
        ("max_cost_usd", "1", "must be an amount in USD"),
        ("max_cost_usd_per_month", 0.000000001, "at most 8 decimal places"),
        ("timeout_seconds", 0.5, "must be a number of seconds from 1 to 86400"),
        ("timeout_seconds", 86_401, "must be a number of seconds from 1 to 86400"),
        ("input_expires_seconds", 2_592_001, "must be a number of seconds from 1 to 2592000"),
        ("input_expires_seconds", "60", "must be a number of seconds"),
        ("approved_by", "staff", "must be one of anyone, org"),
        ("on_input_expired", "wait", "must be one of fail, continue"),
        ("overrides", ["limits", "limits"], "duplicate entry 'limits'"),
        ("on_limit", "stop", "must be one of answer, fail"),
    ],
)
def test_a_wrong_field_is_named(name: str, value: Any, why: str) -> None:
    """A wrong field is reported with its limit."""
    with pytest.raises(InvalidPersona) as raised:
        read("p", "1", {name: value})

    assert [name] == list(raised.value.problems)
    assert why in raised.value.problems[name][0]


def test_an_agent_excludes_what_only_the_loop_uses() -> None:
    """A persona with an agent cannot set a field that would have no effect."""
    allowed = {"agent": "mine", "system_prompt": "Hi", "tools": None, "delegates": ["p"]}
    assert "mine" == read("p", "1", {**allowed, "max_depth": 2, "max_active_children": 1}).agent

    with pytest.raises(InvalidPersona) as raised:
        read("p", "1", {"agent": "mine", "tools": ["calculator"], "max_equal_turns": 3})

    assert {"tools", "max_equal_turns"} == raised.value.problems.keys()


def test_all_wrong_fields_are_told_at_once() -> None:
    """All wrong fields are reported at once, each with its reasons."""
    with pytest.raises(InvalidPersona) as raised:
        read("p", "1", {"max_steps": 0, "tools": ["x y"], "more": 1, "require_approval": ["y"]})

    assert {"max_steps", "tools", "more"} == set(raised.value.problems)


def test_patterns_that_ignore_case_fit_into_a_persona() -> None:
    """A stored one that a newer release refused would fail each of its runs."""
    pattern = r"(?i)^[A-Z]{2,4}-\d{4}-\d{2}$"
    properties = {f"a{number}": {"type": "string", "pattern": pattern} for number in range(11)}
    schema = {"type": "object", "properties": properties}
    tools = [
        {"name": f"t{number}", "description": "A tool.", "client": True, "parameters": schema}
        for number in range(2)
    ]

    persona = personas.read("p", "1", {"output_schema": schema, "client_tools": tools})

    assert schema == persona.output_schema


def test_a_star_requires_approval_of_every_tool() -> None:
    """It covers all tools that the persona has; a tool of an MCP server is not known before it
    runs.
    """
    assert frozenset({"*"}) == read("p", "1", {"require_approval": ["*"]}).require_approval
    assert (
        frozenset({"x"})
        == read("p", "1", {"require_approval": ["x"], "mcp": ["time"]}).require_approval
    )


# ---- files ---------------------------------------------------------------------------


def test_the_folder_has_the_files_of_the_builtin_personas_alone() -> None:
    """What is there is a persona, and has the name of its file."""
    folder = resources.files("arkloop.shared.catalog").joinpath("persona_files")
    names = {file.name.removesuffix(".yaml") for file in folder.iterdir()}

    assert names == set(personas.builtin())


@pytest.mark.parametrize(
    ("name", "text", "where", "why"),
    [
        ("p@1.yaml", "max_step: 1", "p@1.yaml: max_step", "unknown field"),
        ("p@1.yaml", "tools: calculator", "p@1.yaml: tools", "must be a list"),
        ("p@1.yaml", "key: p", "p@1.yaml: key", "unknown field"),
        ("p@1.yaml", "1: 2", "p@1.yaml: 1", "unknown field"),
        ("p@1.yaml", "", "p@1.yaml", "must be a mapping"),
        ("p@1.yaml", "[", "p@1.yaml", "expected the node content"),
        ("p.yaml", "{}", "p.yaml", "must be named <key>@<version>.yaml"),
        ("p@1.yml", "{}", "p@1.yml", "must be named <key>@<version>.yaml"),
        ("p q@1.yaml", "{}", "p q@1.yaml", "must be named <key>@<version>.yaml"),
    ],
)
def test_a_wrong_file_is_named(name: str, text: str, where: str, why: str) -> None:
    """A wrong file is reported with its name and the field in it."""
    with pytest.raises(InvalidPersona) as raised:
        from_file(name, text)

    assert [where] == list(raised.value.problems)
    assert why in raised.value.problems[where][0]
