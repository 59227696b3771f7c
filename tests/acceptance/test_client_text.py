"""`StreamedText` of both client libraries: the text of one turn."""

from collections.abc import Callable
from typing import Any

import pytest
from arkloop_client import StreamedText

from tests import typescript_client
from tests.ai_sdk_chat import needs_front_ends


def in_python(events: list[Any]) -> list[str]:
    text, shown = StreamedText(), []
    for event in events:
        text.add(event)
        shown.append(str(text))
    return shown


def in_typescript(events: list[Any]) -> list[str]:
    return list(typescript_client.run("client_text.mjs", events))


SHOWN = pytest.mark.parametrize(
    "shown", [in_python, pytest.param(in_typescript, marks=needs_front_ends)]
)


def events(*given: tuple[str, str]) -> list[Any]:
    """Return events of these types with this text, numbered; calls have no text."""
    return [
        {"seq": seq, "type": kind, "data": {"content": said}}
        for seq, (kind, said) in enumerate(given, 1)
    ]


@SHOWN
def test_a_result_ends_the_text_of_its_turn(shown: Callable[[list[Any]], list[str]]) -> None:
    """The next turn begins then, also before its first piece of text."""
    streamed = events(
        *(("message.delta", "Let me "), ("message.completed", "Let me look."), ("tool.call", "")),
        *(("tool.result", ""), ("message.delta", "It is"), ("message.completed", "It is 42.")),
    )

    expected = ["Let me ", "Let me look.", "Let me look.", "", "It is", "It is 42."]
    assert expected == shown(streamed)


@SHOWN
def test_a_result_of_an_earlier_turn_takes_no_text(
    shown: Callable[[list[Any]], list[str]],
) -> None:
    """A custom agent may have said more before a call has a result, at the latest at its end."""
    streamed = events(
        *(("message.completed", ""), ("tool.call", ""), ("tool.call", "")),
        *(("message.delta", "It"), ("tool.result", ""), ("message.completed", "It is 42.")),
        *(("tool.result", ""), ("run.completed", "")),
    )

    assert ["", "", "", "It", "It", *["It is 42."] * 3] == shown(streamed)
