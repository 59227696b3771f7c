"""Tools: the schema is the signature, arguments are checked before the call."""

import re
from pathlib import Path
from typing import Any

import pytest

from shared import personas
from tests.worker.recorded_run import RecordedRun
from worker import tools
from worker.context import RunContext
from worker.outcomes import CancelRequested
from worker.tools import CallInfo, ToolFailed, tool

INFO = CallInfo(idempotency_key="run:call")


@tool(repeatable=True)
def sample(
    context: RunContext,
    text: str,
    number: float,
    info: CallInfo,
    count: int = 1,
    flag: bool = False,
    words: list[str] | None = None,
) -> str:
    """Do nothing.

    At length.
    """
    return f"{text} {number} {count} {flag} {words} {info.idempotency_key}"


def test_the_signature_is_the_schema() -> None:
    """Names, types, what is required; the docstring is what the model reads."""
    assert ("sample", "Do nothing.\n\nAt length.") == (sample.spec.name, sample.spec.description)
    assert {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "number": {"type": "number"},
            "count": {"type": "integer"},
            "flag": {"type": "boolean"},
            "words": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["text", "number"],
        "additionalProperties": False,
    } == sample.spec.parameters


def test_a_tool_gets_its_arguments_and_the_key_of_its_call() -> None:
    """Defaults stand in for what the model leaves out."""
    arguments = {"text": "a", "number": 1, "words": ["x"]}
    sample.check(arguments)

    assert "a 1 1 False ['x'] run:call" == sample(RecordedRun(), INFO, arguments)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("text", "must be a JSON object"),
        (None, "must be a JSON object"),
        ({"number": 1}, "'text' is missing"),
        ({"text": "a", "number": 1, "more": 1}, "no argument 'more'"),
        ({"text": "a", "number": 1, "info": "x"}, "no argument 'info'"),
        ({"text": "a", "number": 1, "context": 1}, "no argument 'context'"),
        ({"text": 1, "number": 1}, "'text' must be of type string"),
        ({"text": "a", "number": "1"}, "'number' must be of type number"),
        ({"text": "a", "number": True}, "'number' must be of type number"),
        ({"text": "a", "number": 1, "count": 1.5}, "'count' must be of type integer"),
        ({"text": "a", "number": 1, "count": False}, "'count' must be of type integer"),
        ({"text": "a", "number": 1, "flag": 1}, "'flag' must be of type boolean"),
        ({"text": "a", "number": 1, "words": "x"}, "'words' must be of type array"),
        ({"text": "a", "number": 1, "words": [1]}, "'words' must be of type array"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: Any, why: str) -> None:
    """The model is told which and why."""
    with pytest.raises(ToolFailed, match=re.escape(why)):
        sample.check(arguments)


def test_every_persona_has_only_tools_that_exist() -> None:
    """Their modules load, and each confirmed tool is one of them; `ask_user` never is."""
    for persona in personas.builtin().values():
        loaded = tools.load(persona.tools)
        assert list(persona.tools) == [t.spec.name for t in loaded.values()]
        assert persona.confirm <= set(persona.tools) - {"ask_user"}


def test_what_has_a_side_effect_is_not_repeated() -> None:
    """Each tool says whether a crash in it may run it again."""
    loaded = tools.load(("ask_user", "current_time", "calculator", *tools.FAULT_TOOLS))

    assert {"append_line"} == {name for name, t in loaded.items() if not t.repeatable}


def test_current_time_is_a_time_of_the_wire() -> None:
    """UTC with milliseconds."""
    current_time = tools.load(["current_time"])["current_time"]

    now = current_time(RecordedRun(), INFO, {})

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now)


def test_append_line_leaves_a_trace(tmp_path: Path) -> None:
    """One line a call; a path that cannot be written is told to the model."""
    append_line = tools.load(["append_line"])["append_line"]
    path = str(tmp_path / "lines")

    for line in ("one", "two"):
        assert "appended" == append_line(RecordedRun(), INFO, {"path": path, "line": line})
    assert "one\ntwo\n" == Path(path).read_text()
    with pytest.raises(ToolFailed):
        append_line(RecordedRun(), INFO, {"path": str(tmp_path), "line": "x"})


def test_sleep_ends_with_the_run() -> None:
    """It waits where a stop of the run is felt."""
    sleep = tools.load(["sleep"])["sleep"]
    run = RecordedRun()

    assert "slept 1.5 s" == sleep(run, INFO, {"seconds": 1.5})
    assert [1.5] == run.paused
    run.stop.set(CancelRequested())
    with pytest.raises(CancelRequested):
        sleep(run, INFO, {"seconds": 60})
