"""Tools: the schema is the signature, arguments are checked before the call."""

import re
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, PydanticUserError

from arkloop.shared import json_schema, schema_work
from arkloop.shared.catalog import personas
from arkloop.shared.security import egress
from arkloop.worker import tools
from arkloop.worker.contract import argument_schema
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.providers.output_modes import FINAL_TOOL
from arkloop.worker.tools import (
    CallInfo,
    InvalidSchema,
    InvalidTool,
    Tool,
    ToolFailed,
    UnknownTool,
    http_fetch,
    tool,
)
from tests.worker.recorded_run import RUN, RecordedRun

PAGE = Path(__file__).parents[3] / "docs/reference/tools.md"
INFO = CallInfo.of(RUN, "call")


class Options(BaseModel):
    scale: Literal["K"] | None = None


@tool(idempotent=True)
def sample(
    context: ToolContext,
    text: Annotated[str, Field(description="What to say.", max_length=9)],
    number: float,
    info: CallInfo,
    count: int = 1,
    flag: bool = False,
    words: Annotated[list[str] | None, Field(description="More to say.")] = None,
    unit: Literal["C", "F"] | None = None,
    scale: Literal["K"] | None = None,
    options: Options | None = None,
) -> str:
    """Do nothing.

    At length.
    """
    return f"{text} {number} {count} {flag} {words} {unit} {info.idempotency_key}"


def test_the_signature_is_the_schema() -> None:
    """Names, types, what is required; the docstring is what the model reads."""
    scale = {"type": ["string", "null"], "enum": ["K", None]}
    assert ("sample", "Do nothing.\n\nAt length.") == (sample.spec.name, sample.spec.description)
    assert {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "What to say.", "maxLength": 9},
            "number": {"type": "number"},
            "count": {"type": "integer"},
            "flag": {"type": "boolean"},
            "words": {
                "type": ["array", "null"],
                "items": {"type": "string"},
                "description": "More to say.",
            },
            "unit": {"type": ["string", "null"], "enum": ["C", "F", None]},
            "scale": scale,
            "options": {"anyOf": [{"$ref": "#/$defs/Options"}, {"type": "null"}]},
        },
        "$defs": {
            "Options": {"type": "object", "title": "Options", "properties": {"scale": scale}},
        },
        "required": ["text", "number"],
        "additionalProperties": False,
    } == sample.spec.parameters


def test_a_tool_gets_its_arguments_and_the_key_of_its_call() -> None:
    """Defaults stand in for what the model leaves out."""
    arguments = {"text": "a", "number": 1, "words": ["x"]}
    sample.check(arguments)

    assert "a 1.0 1 False ['x'] None run:call" == sample(RecordedRun(), INFO, arguments)


def test_a_model_may_write_null_and_whole_numbers_as_it_likes() -> None:
    """Null is for what may be left out; 2.0 is an integer to JSON Schema, and 2 to the tool."""
    arguments = {"text": "a", "number": 1, "count": 2.0, "words": None, "unit": None}
    arguments |= {"scale": None, "options": {"scale": None}}
    sample.check(arguments)

    assert "a 1.0 2 False None None run:call" == sample(RecordedRun(), INFO, arguments)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("text", "must be a JSON object"),
        (None, "must be a JSON object"),
        ({"number": 1}, "Missing argument 'text'"),
        ({"text": "a", "number": 1, "more": 1}, "Unknown argument 'more'"),
        ({"text": "a", "number": 1, "info": "x"}, "Unknown argument 'info'"),
        ({"text": "a", "number": 1, "context": 1}, "Unknown argument 'context'"),
        ({"text": 1, "number": 1}, "'text' must be of type string"),
        ({"text": "a", "number": "1"}, "'number' must be of type number"),
        ({"text": "a", "number": True}, "'number' must be of type number"),
        ({"text": "a", "number": 1, "count": 1.5}, "'count' must be of type integer"),
        ({"text": "a", "number": 1, "count": False}, "'count' must be of type integer"),
        ({"text": "a", "number": 1, "flag": 1}, "'flag' must be of type boolean"),
        ({"text": "a", "number": 1, "words": "x"}, "'words' must be of type null or array"),
        ({"text": "a", "number": 1, "words": [1]}, "'words[0]' must be of type string"),
        ({"text": "a", "number": 1, "unit": "K"}, "'unit': the value is not one of"),
        ({"text": "aaaaaaaaaa", "number": 1}, "'text': the value is longer than 9 characters"),
        ({"text": None, "number": 1}, "'text' must be of type string"),
        ({}, "Missing argument 'text'. Missing argument 'number'."),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: Any, why: str) -> None:
    """The model reads which and why."""
    with pytest.raises(ToolFailed, match=re.escape(why)):
        sample.check(arguments)


def test_a_tool_of_somebody_else_s_takes_its_arguments_as_one() -> None:
    """A foreign tool gets its arguments as one mapping, even under the names of our own
    parameters.
    """

    def call(context: ToolContext, info: CallInfo, arguments: Mapping[str, Any]) -> str:
        return f"{info.idempotency_key} {dict(arguments)}"

    names = {"context": {"type": "string"}, "info": {}, "self": {}, "a-b": {"maximum": 3}}
    foreign = Tool(
        spec=ToolSpec("foreign", "Theirs.", {"type": "object", "properties": names}),
        function=call,
        idempotent=False,
    )
    arguments = {"context": "x", "info": 1, "self": 2, "a-b": 3}

    foreign.check(arguments)
    assert f"run:call {arguments}" == foreign(RecordedRun(), INFO, arguments)
    with pytest.raises(ToolFailed, match="'a-b': the value is greater than the maximum of 3"):
        foreign.check({"a-b": 4})


def test_a_tool_of_ours_with_a_schema_that_is_none_is_not_made() -> None:
    """A worker does not start with it."""

    def odd(
        context: ToolContext, number: Annotated[int, Field(json_schema_extra={"minimum": "low"})]
    ) -> str:
        """Return nothing."""
        return ""

    with pytest.raises(InvalidSchema):
        tool(idempotent=True)(odd)


def test_a_foreign_tool_with_an_invalid_schema_cannot_be_called() -> None:
    """Each call fails with the reason as its result."""
    foreign = Tool(
        spec=ToolSpec("foreign", "Theirs.", {"type": "nonsense"}),
        function=lambda context, info, arguments: "",
        idempotent=False,
    )

    for _ in range(2):
        with pytest.raises(ToolFailed, match="not a usable schema: Not a JSON Schema"):
            foreign.check({})


def test_a_type_without_a_schema_is_told_to_who_writes_the_tool() -> None:
    """When the module is imported."""

    def odd(context: ToolContext, when: Path | Event) -> str:
        """Return nothing."""
        return ""

    with pytest.raises(PydanticUserError, match="Event"):
        tool(idempotent=True)(odd)


def test_a_value_that_the_schema_allows_and_the_type_does_not_is_refused() -> None:
    """The model gets the argument's name, and the function is not called."""

    @tool(idempotent=True)
    def remind(context: ToolContext, days: list[date]) -> str:
        """Show them."""
        return " ".join(day.strftime("%A") for day in days)

    assert "Monday" == remind(RecordedRun(), INFO, {"days": ["2026-11-23"]})
    with pytest.raises(ToolFailed, match=r"not valid: days\.0\."):
        remind(RecordedRun(), INFO, {"days": ["2026-13-23"]})


def test_whole_numbers_in_lists_are_integers_too() -> None:
    """The function gets what its signature says, however deep."""

    @tool(idempotent=True)
    def add(
        context: ToolContext,
        numbers: list[list[int] | None],
        by: Annotated[list[float], Field(description="May be whole.")],
        times: Literal[1, 2] = 1,
    ) -> str:
        """Show them."""
        return f"{numbers} {by} {times}"

    arguments = {"numbers": [[2.0, 3], None, []], "by": [2.0, 0.5], "times": 2.0}
    add.check(arguments)

    assert "[[2, 3], None, []] [2.0, 0.5] 2" == add(RecordedRun(), INFO, arguments)
    with pytest.raises(ToolFailed, match=re.escape("'numbers[0][0]' must be of type integer")):
        add.check({"numbers": [[2.5]], "by": []})


BROKEN = {
    "def broken(context: ToolContext, a) -> str:\n    'B.'": "The parameter 'a' has no type.",
    "def broken(a: str, b: str) -> str:\n    'B.'": "parameter must be `context: ToolContext`",
    "def broken() -> str:\n    'B.'": "parameter must be `context: ToolContext`",
    "def broken(context: ToolContext) -> str:\n    return ''": "no docstring",
    "def other(context: ToolContext) -> str:\n    'B.'": "there is no function 'broken'",
    "def other(context: ToolContext) -> str:\n    'B.'\nbroken = other": "is named 'other'",
    "def other(context: ToolContext) -> str:\n    'B.'\nbroken = str": "is not a tool",
    "def broken(context: ToolContext, a: type(tool)) -> str:\n    'B.'": "<class 'function'>",
    "def broken(context: ToolContext, a: Nowhere) -> str:\n    'B.'": "NameError: ",
    "async def broken(context: ToolContext) -> str:\n    'B.'": "is a coroutine function",
    "def broken(context: ToolContext, -> str:\n    'B.'": "SyntaxError: ",
}


@pytest.mark.parametrize("function", BROKEN)
def test_a_file_that_holds_no_tool_is_told_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """A missing type, name or context is reported at the start, not by failing runs."""
    imports = (
        "from arkloop.worker.contract.context import ToolContext\n"
        "from arkloop.worker.tools import tool\n"
    )
    (tmp_path / "broken.py").write_text(f"{imports}\n@tool(idempotent=True)\n{function}\n")
    monkeypatch.setattr(tools, "__path__", [*tools.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "arkloop.worker.tools.broken", raising=False)
    tools.names.cache_clear()
    try:
        with pytest.raises(InvalidTool) as told:
            tools.load(["broken"])
    finally:
        tools.names.cache_clear()

    assert str(told.value).startswith("worker/tools/broken.py: ")
    assert BROKEN[function] in str(told.value)


def test_the_tools_there_are_is_the_folder() -> None:
    """Each module holds one, of its own name; nothing else can be loaded."""
    others = {*tools.FAULT_TOOLS, *tools.AUTOMATIC_TOOLS}
    assert set(personas.BUILTIN_TOOLS) == set(tools.names()) - others
    assert list(tools.names()) == [t.spec.name for t in tools.load(tools.names()).values()]
    for name in ("nonsense", "os", "__init__", "", "calculator.x", "..providers"):
        with pytest.raises(UnknownTool, match="available: append_line, ask_user, calculator"):
            tools.load([name])


def test_the_names_of_tools_of_every_agent_are_reserved() -> None:
    """No tool of an org can have the name of a tool that an agent may have without naming it."""
    every_agents = {*tools.AUTOMATIC_TOOLS, *tools.FAULT_TOOLS, FINAL_TOOL}
    assert set() == every_agents - {*personas.RESERVED_NAMES, *personas.BUILTIN_TOOLS}


def test_the_example_of_the_page_is_a_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written into a file beside the others, it is loaded, checks and works."""
    [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [name] = re.findall(r"^def (\w+)", example, re.MULTILINE)
    (tmp_path / f"{name}.py").write_text(example)
    monkeypatch.setattr(tools, "__path__", [*tools.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"arkloop.worker.tools.{name}", raising=False)
    tools.names.cache_clear()
    try:
        convert = tools.load([name])[name]
    finally:
        tools.names.cache_clear()

    arguments = {"degrees": 21, "scale": "celsius"}
    convert.check(arguments)
    assert "69.8 °F" == convert(RecordedRun(), INFO, arguments)
    arguments = {"degrees": 69.8, "scale": "fahrenheit", "decimals": 0}
    assert "21 °C" == convert(RecordedRun(), INFO, arguments)
    with pytest.raises(ToolFailed, match="below absolute zero"):
        convert(RecordedRun(), INFO, {"degrees": -300, "scale": "celsius"})
    told = "The argument 'decimals': the value is greater than the maximum of 6."
    assert told in PAGE.read_text().replace("\n", " ").replace("  ", " ")
    with pytest.raises(ToolFailed, match=re.escape(told)):
        convert.check({**arguments, "decimals": 7})


def test_the_page_has_each_tool_and_the_limits_of_the_code() -> None:
    """The tables of tools and of `http_fetch` are checked."""
    page = PAGE.read_text()
    for name in tools.names():
        own = "`" + name + "` | "
        assert name in tools.FAULT_TOOLS or f"\n| {own}" in page
    for text in (
        f"| {http_fetch.MAX_SECONDS:g} s |",
        f"| {http_fetch.CONNECT_SECONDS:g} s |",
        f"| {http_fetch.IDLE_SECONDS:g} s |",
        f"the first {http_fetch.MAX_BODY_BYTES:,} bytes",
        f"| {http_fetch.MAX_REDIRECTS};",
        f"| {egress.MAX_URL_CHARACTERS:,} characters |",
        f"at most {json_schema.MAX_NODES:,} nodes",
        f"{json_schema.MAX_DEPTH} levels",
        f"at most {json_schema.MAX_PATTERNS} are",
        f"more than {argument_schema.MAX_MATCHED:,}",
        f"may be {schema_work.MAX_WORK:,}",
    ):
        assert text in page


def test_ask_user_offers_a_list_that_can_be_read() -> None:
    """`ask_user` offers at most 20 options of 200 characters."""
    ask_user = tools.load(["ask_user"])["ask_user"]

    ask_user.check({"question": "?", "options": ["x" * 200] * 20})
    for options in (["x"] * 21, ["x" * 201], [""]):
        with pytest.raises(ToolFailed, match="options"):
            ask_user.check({"question": "?", "options": options})


def test_ask_user_asks_a_question_that_fits_into_a_list() -> None:
    """Lists of runs have the questions of all that wait: at most 8,192 characters each."""
    ask_user = tools.load(["ask_user"])["ask_user"]

    ask_user.check({"question": "?" * 8192})
    for question in ("?" * 8193, ""):
        with pytest.raises(ToolFailed, match="'question': the value is"):
            ask_user.check({"question": question})
    assert "in at most 8,192 characters" in PAGE.read_text()


def test_every_persona_has_only_tools_that_exist() -> None:
    """Their modules load; tools that require approval are among them, `ask_user` never."""
    for persona in personas.builtin().values():
        loaded = tools.load(persona.tools)
        assert list(persona.tools) == [t.spec.name for t in loaded.values()]
        assert persona.require_approval <= set(persona.tools) - {"ask_user"}


def test_what_has_a_side_effect_is_not_repeated() -> None:
    """Each tool says whether a crash in it may run it again."""
    loaded = tools.load(("ask_user", "current_time", "calculator", *tools.FAULT_TOOLS))

    assert {"append_line"} == {name for name, t in loaded.items() if not t.idempotent}


def test_current_time_is_a_time_of_the_wire() -> None:
    """The time is UTC with milliseconds."""
    current_time = tools.load(["current_time"])["current_time"]

    now = current_time(RecordedRun(), INFO, {})

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now)


def test_append_line_leaves_a_trace(tmp_path: Path) -> None:
    """It writes one line a call; a path that cannot be written is reported to the model."""
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
