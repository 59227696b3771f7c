"""Recorded runs as streams of AG-UI."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ag_ui.core import Event
from pydantic import TypeAdapter

from arkloop.api.protocols.agui_facts import AguiFacts
from arkloop.api.protocols.agui_messages import PackedMessages
from arkloop.api.protocols.agui_projection import AguiProjection
from tests.api.protocols.recorded_runs import NAMES, RUN_ID, check_golden, events_of, project_all

FACTS = AguiFacts(
    run_id=RUN_ID,
    thread_id="chat-7",
    client_run_id="run-of-the-client",
    client_tools=frozenset({"locate"}),
)
ASKED = {"id": "m1", "role": "user", "content": "Hello"}
_EVENT: TypeAdapter[Any] = TypeAdapter(Event)


def parts_of(name: str, **how: Any) -> Iterator[tuple[AguiProjection, list[bytes]]]:
    """Yield each run of the protocol that a recorded run has, with its frames."""
    waits = 0
    while True:
        earlier = PackedMessages([ASKED])
        projection = AguiProjection(FACTS, waits, earlier=earlier, **how)
        yield projection, projection.opening() + project_all(events_of(name), projection)
        if projection.asked is None:
            return
        waits = projection.waits


def data_of(frames: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(frame.removeprefix(b"data: ").partition(b"\n")[0]) for frame in frames]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_the_frames_of_its_golden(name: str) -> None:
    """The frames of this version of the protocol stay as they are."""
    check_golden("agui-1.0", name, b"".join(b"".join(frames) for _, frames in parts_of(name)))


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_is_an_event_of_the_protocol(name: str) -> None:
    """Each part begins with its run, ends with it, and has only known events in between."""
    for _, frames in parts_of(name):
        events = data_of(frames)
        for event in events:
            _EVENT.validate_python(event)
        types = [event["type"] for event in events]
        assert "RUN_STARTED" == types[0]
        assert types[-1] in ("RUN_FINISHED", "RUN_ERROR")
        assert 1 == sum(type_ in ("RUN_FINISHED", "RUN_ERROR") for type_ in types)
        ids = [frame.rpartition(b"\nid: ")[2].strip().decode() for frame in frames]
        assert [str(n + 1) for n in range(len(ids))] == [id_.rpartition(".")[2] for id_ in ids]


@pytest.mark.parametrize("name", NAMES)
def test_a_part_ends_what_it_has_begun(name: str) -> None:
    """A message, reasoning or call is open in one part alone, and the run ends after it."""
    for _, frames in parts_of(name):
        open_: set[tuple[str, str]] = set()
        for event in data_of(frames):
            kind, _, step = event["type"].rpartition("_")
            opened = (kind, event.get("messageId") or event.get("toolCallId") or "")
            if step == "START":
                open_.add(opened)
            elif step == "END":
                open_.remove(opened)
        assert set() == open_


def test_an_interrupt_names_only_calls_of_the_run() -> None:
    """A question of a custom agent may have a key that is not the id of a call."""
    events = [event for _, frames in parts_of("keyed_questions") for event in data_of(frames)]

    outcomes = [event["outcome"] for event in events if event["type"] == "RUN_FINISHED"]
    asked = [one for outcome in outcomes for one in outcome.get("interrupts", ())]
    assert [FACTS.call_id("cancel-1"), None] == [one.get("toolCallId") for one in asked]


@pytest.mark.parametrize("name", NAMES)
def test_a_cursor_has_the_frames_after_it(name: str) -> None:
    """The rest of the stream follows without a gap, whatever was received."""
    for number, (_, frames) in enumerate(parts_of(name)):
        for after in range(len(frames) + 1):
            resumed = [rest for _, rest in parts_of(name, after=after)][number]
            assert frames[after:] == resumed


def test_a_connect_begins_with_all_messages() -> None:
    """After the start comes a snapshot: what was before the run, and the run's parts before."""
    _, (_, frames) = parts_of("client_tools", connects=True)
    snapshot = data_of(frames)[1]

    assert "MESSAGES_SNAPSHOT" == snapshot["type"]
    roles = [message["role"] for message in snapshot["messages"]]
    assert ["user", "assistant", "tool"] == roles
    assert 4 == len(snapshot["messages"][1]["toolCalls"])
    assert b"\nid: " not in frames[1]


def test_a_page_that_connects_gets_the_results_of_another_one() -> None:
    """They come after the snapshot, which is that of the wait, and do not count for cursors."""
    _, (_, of_sender) = parts_of("client_tools")
    _, (_, connected) = parts_of("client_tools", connects=True)
    own = [frame for frame in connected if b"\nid: " not in frame]
    [snapshot, *results] = data_of(own)

    assert "MESSAGES_SNAPSHOT" == snapshot["type"]
    handed = [FACTS.call_id(name) for name in ("call_1_2", "call_1_4")]
    assert [("TOOL_CALL_RESULT", id_) for id_ in handed] == [
        (event["type"], event["toolCallId"]) for event in results
    ]
    assert of_sender == [frame for frame in connected if b"\nid: " in frame]


def test_text_is_taken_back_by_a_snapshot() -> None:
    """After a reset the messages are those before the turn, and the turn comes under its old id."""
    [(_, frames)] = parts_of("reset")
    events = data_of(frames)
    place = next(n for n, e in enumerate(events) if e["type"] == "MESSAGES_SNAPSHOT")

    reasoning = {"id": f"rs_{RUN_ID.hex}_0_0", "role": "reasoning", "content": ""}
    assert [ASKED, reasoning] == events[place]["messages"]
    starts = [e["messageId"] for e in events if e["type"] == "TEXT_MESSAGE_START"]
    assert 2 * [f"msg_{RUN_ID.hex}_0"] == starts


def with_edited_arguments() -> list[dict[str, Any]]:
    """Return the events of a run whose first call of the client a person has edited."""
    events = events_of("client_tools")
    for event in events:
        if event["type"] == "run.waiting_for_input":
            event["data"]["calls"][0]["arguments"] = {"exact": False}
    return events


def test_edited_arguments_replace_the_announced_ones() -> None:
    """What a person has changed before the client gets the call is in a snapshot before the end."""
    projection = AguiProjection(FACTS)
    frames = projection.opening() + project_all(with_edited_arguments(), projection)

    snapshot = data_of(frames)[-2]
    assert "MESSAGES_SNAPSHOT" == snapshot["type"]
    calls = snapshot["messages"][0]["toolCalls"]
    assert '{"exact":false}' == calls[1]["function"]["arguments"]


def with_edited_reply() -> list[dict[str, Any]]:
    """Return the events of a run whose first call of the service a person has edited."""
    events = events_of("approvals")
    reply = next(event for event in events if event["type"] == "run.input_received")
    edit = {"decision": "edit", "arguments": {"expression": "2*5"}}
    reply["data"]["content"] = json.dumps(edit)
    return events


def frames_of(events: list[dict[str, Any]], waits: int, **how: Any) -> list[bytes]:
    projection = AguiProjection(FACTS, waits, earlier=PackedMessages([ASKED]), **how)
    return projection.opening() + project_all(events, projection)


@pytest.mark.parametrize("connects", [False, True])
def test_arguments_of_the_services_calls_are_those_that_were_executed(connects: bool) -> None:
    """A snapshot at the beginning of what follows the reply has those that a person has edited."""
    frames = frames_of(with_edited_reply(), 1, connects=connects)
    started, *corrected = data_of(frames)[: 3 if connects else 2]
    proposed = data_of(frames_of(events_of("approvals"), 1, connects=True))[1]

    assert "RUN_STARTED" == started["type"]
    assert {"MESSAGES_SNAPSHOT"} == {event["type"] for event in corrected}
    calls = corrected[-1]["messages"][1]["toolCalls"]
    assert '{"expression":"2*5"}' == calls[0]["function"]["arguments"]
    assert calls[1:] == proposed["messages"][1]["toolCalls"][1:]


@pytest.mark.parametrize("waits", [0, 1, 2])
def test_a_snapshot_of_edited_arguments_does_not_count_for_cursors(waits: int) -> None:
    """Clients have cursors of streams that had none; it comes again for those before it alone."""
    edited = with_edited_reply()
    plain, frames = frames_of(events_of("approvals"), waits), frames_of(edited, waits)
    numbered = [frame for frame in frames if b"\nid: " in frame]

    assert (waits == 1) == (len(frames) > len(numbered))
    ids = [[frame.partition(b"\nid: ")[2] for frame in one] for one in (plain, numbered)]
    assert ids[0] == ids[1]
    for after in range(len(numbered) + 1):
        lacking = frames if after == 0 else frames[1:] if after == 1 else numbered[after:]
        assert lacking == frames_of(edited, waits, after=after)


def test_proposed_arguments_come_again_with_the_second_request_about_a_call() -> None:
    """Their snapshot counts for no cursor either, and is sent up to the interrupt alone."""
    events = with_edited_reply()
    asked = next(event for event in events if event["type"] == "run.waiting_for_input")
    events.insert(events.index(asked) + 3, asked)
    frames = frames_of(events, 1)

    types = ["RUN_STARTED", "MESSAGES_SNAPSHOT", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    assert types == [event["type"] for event in data_of(frames)]
    assert [True, False, False, True] == [b"\nid: " in frame for frame in frames]
    assert [frames, frames[1:], []] == [frames_of(events, 1, after=after) for after in range(3)]
    calls = data_of(frames)[2]["messages"][1]["toolCalls"]
    assert data_of(frames_of(events, 2, connects=True))[1]["messages"][1]["toolCalls"] == calls


@pytest.mark.parametrize("waits", [0, 1])
def test_a_result_from_before_an_edit_is_taken_back(waits: int) -> None:
    """The snapshot with the new arguments lacks it; one that follows has the results of these."""
    earlier: list[dict[str, Any]] = [
        {"id": f"t-{name}", "role": "tool", "toolCallId": FACTS.call_id(name), "content": "Rome"}
        for name in ("call_1_2", "call_1_4")
    ]
    packed = PackedMessages([ASKED, *earlier])
    projection = AguiProjection(FACTS, waits, earlier=packed, connects=waits > 0)
    frames = projection.opening() + project_all(with_edited_arguments(), projection)

    [snapshot] = [e for e in data_of(frames) if e["type"] == "MESSAGES_SNAPSHOT"]
    sent = [m for m in snapshot["messages"] if m["id"].startswith("t-")]
    assert (earlier if waits else earlier[1:]) == sent
