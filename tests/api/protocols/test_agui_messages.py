"""The usage that a run of AG-UI reports."""

from typing import Any

from arkloop.api.protocols.agui_messages import usage_between


def part(model: str, tokens: int) -> dict[str, Any]:
    return {"route_id": "r", "model": model, "usage": {"input_tokens": tokens, "output_tokens": 1}}


def test_each_model_of_a_route_has_its_usage() -> None:
    """The model of the route changed while the run waited."""
    before, after = [part("one", 5)], [part("one", 5), part("two", 7)]

    assert [("two", 7)] == [(u["model"], u["input_tokens"]) for u in usage_between(before, after)]
    assert [("one", 5), ("two", 7)] == [
        (u["model"], u["input_tokens"]) for u in usage_between([], after)
    ]
