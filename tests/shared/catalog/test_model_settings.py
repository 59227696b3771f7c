"""Settings of model calls: what is valid, and which level counts."""

import math
from typing import Any

import pytest

from arkloop.shared.catalog import model_settings
from arkloop.shared.catalog.model_settings import MAX_EXTRA_BYTES, RESERVED, InvalidModelSettings

DEEP: dict[str, Any] = {}
for _ in range(20):
    DEEP = {"x": DEEP}


def test_every_setting_is_read() -> None:
    """Values stay as they are; a single `stop` becomes a list."""
    given = {
        "temperature": 0,
        "top_p": 0.9,
        "seed": -7,
        "stop": "END",
        "tool_choice": {"name": "calculator"},
        "parallel_tool_calls": False,
        "reasoning_effort": "max",
        "verbosity": "low",
        "extra_body": {"service_tier": "flex", "reasoning": {"mode": "pro"}},
    }

    assert model_settings.NAMES == given.keys()
    assert {**given, "stop": ["END"]} == model_settings.read(given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", math.nan),
        ("top_p", 1.1),
        ("seed", 1.0),
        ("seed", 2**63),
        ("stop", []),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", [""]),
        ("stop", ["x" * 257]),
        ("stop", ["\x00"]),
        ("stop", [1]),
        ("tool_choice", "any"),
        ("tool_choice", {"name": "not a name"}),
        ("tool_choice", {"type": "function", "function": {"name": "a"}}),
        ("parallel_tool_calls", 1),
        ("reasoning_effort", "extreme"),
        ("reasoning_effort", []),
        ("verbosity", "none"),
        ("extra_body", []),
        ("extra_body", {1: 2}),
        ("extra_body", {"temperature": 1}),
        ("extra_body", DEEP),
        ("extra_body", {"x": math.inf}),
        ("extra_body", {"x": object()}),
        ("extra_body", {"x": "\x00"}),
        ("extra_body", {"x": "\ud800"}),
        ("extra_body", {"x": "y" * MAX_EXTRA_BYTES}),
        *(("extra_body", {name: 1}) for name in sorted(RESERVED)),
        ("top_k", 5),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(name: str, value: Any) -> None:
    """The problem is that of this setting alone, next to valid ones."""
    with pytest.raises(InvalidModelSettings) as caught:
        model_settings.read({"verbosity": "high", name: value})

    assert [name] == list(caught.value.problems)


def test_the_nearer_level_counts_for_each_name() -> None:
    """A null at a nearer level stands for the vendor's default."""
    route = {"temperature": 1.0, "seed": 1, "extra_body": {"a": 1}}
    persona = {"temperature": 0.5, "extra_body": {"b": 2}}

    merged = model_settings.effective(route, persona, {"seed": None, "top_p": 0.1})

    assert {"temperature": 0.5, "extra_body": {"b": 2}, "top_p": 0.1} == merged


def test_dropped_settings_may_be_fields_of_the_extra_body() -> None:
    """Only the refused field of it is dropped."""
    settings = {"seed": 1, "extra_body": {"a": 1, "b": 2}}

    assert {"extra_body": {"b": 2}} == model_settings.without(settings, ["seed", "extra_body.a"])
    assert {"seed": 1} == model_settings.without(settings, ["extra_body"])
