"""The search for tools by words."""

import json
import time
from functools import cache

import pytest

from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.tools import CallInfo, ToolFailed
from arkloop.worker.tools.search_tools import found_names, naming, rank, search_tools
from tests.worker.recorded_run import RUN

TOOLS = {
    "create_issue": "Open a new issue in a repository.",
    "createCalendarEvent": "Add an event to a calendar of the user.",
    "list_files": "List the files of a folder.",
    "send_mail": "Send a message to an address. Files can be attached.",
    "天気": "指定した都市の天気を返します。",
}
SPECS = [ToolSpec(name, text, {"type": "object"}) for name, text in TOOLS.items()]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("calendar", ["createCalendarEvent"]),
        ("new calendar event", ["createCalendarEvent", "create_issue"]),
        ("file", ["list_files", "send_mail"]),
        ("files", ["list_files", "send_mail"]),
        ("CREATE", ["createCalendarEvent", "create_issue"]),
        ("天気", ["天気"]),
        ("...", []),
        ("quantum", []),
    ],
)
def test_tools_are_found_by_the_words_of_their_names_and_descriptions(
    query: str, names: list[str]
) -> None:
    """Words of a name count more than those of a description, and rare words more than others."""
    assert names == [spec.name for spec in rank(SPECS, query)]


def call(query: str, **arguments: int) -> str:
    info = CallInfo.of(RUN, "call", searchable=SPECS)
    output = search_tools(StopSignal(), info, {"query": query, **arguments})
    assert isinstance(output, str)
    return output


def test_a_result_lists_the_best_matches_and_says_how_many_there_are() -> None:
    """The names in it are read again when the run is resumed."""
    output = call("create files", limit=2)

    assert 2 == len(json.loads(output)["tools"])
    assert 2 == json.loads(output)["further_matches"]
    assert [tool["name"] for tool in json.loads(output)["tools"]] == found_names(output)


def test_a_search_without_a_match_is_an_error_that_finds_nothing() -> None:
    """The model reads that it should search with other words."""
    with pytest.raises(ToolFailed, match="other words") as failed:
        call("quantum")

    assert [] == found_names(str(failed.value)) == found_names('{"tools": [1]}')


def test_the_description_names_what_there_is_to_search() -> None:
    """The model learns which servers there are, and the tool that others use stays as it is."""
    named = naming(search_tools, ["github", "files"], 214)

    assert named.spec.description.endswith("214 tools of these servers: files, github.")
    assert "github" not in search_tools.spec.description


@pytest.mark.parametrize("query", ["(a+)+$" * 80, "aab " * 125, "ﷺ" * 500, "e\u0301" * 250])
@pytest.mark.parametrize("text", ["a" * 16_000, "aA" * 8_000, "ﷺ" * 16_000, "e\u0301" * 8_000])
def test_no_text_makes_a_search_slow(text: str, query: str) -> None:
    """All the tools that a run can have cost at most five times as much as with plain sentences."""
    # The processor may be slow for some time: what it takes for plain sentences is measured again.
    measured = (_measured_once, _seconds_of_plain_sentences, _seconds_of_plain_sentences)

    assert any(_seconds(text, query) < 5 * plain() for plain in measured)


@cache
def _measured_once() -> float:
    return _seconds_of_plain_sentences()


def _seconds_of_plain_sentences() -> float:
    sentence = "Creates an event in the calendar of a person, and books a room. "
    query = "create an event in the calendars of persons and rooms " * 9
    return min(_seconds(sentence * 250, query) for _ in range(3))


def _seconds(description: str, query: str) -> float:
    """Measure the processor time of a search."""
    specs = [ToolSpec(f"tool_{number}", description, {}) for number in range(512)]
    began = time.thread_time()
    rank(specs, query)
    return time.thread_time() - began
