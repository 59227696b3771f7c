"""Recorded runs as UI message streams of the AI SDK."""

import json
from typing import Any

import pytest

from arkloop.api.protocols import call_ids
from arkloop.api.protocols.ai_sdk_answers import Waits
from arkloop.api.protocols.ai_sdk_dialects import DEFAULT, NEWEST, Dialect
from arkloop.api.protocols.ai_sdk_messages import assistant_message
from arkloop.api.protocols.ai_sdk_outputs import text_of, value_of
from arkloop.api.protocols.ai_sdk_projection import DONE, AiSdkProjection
from arkloop.shared.events.stored_events import StoredEvent
from tests.api.protocols.recorded_runs import NAMES, RUN_ID, check_golden, events_of, project_all

#: The first version of each dialect.
VERSIONS = ["5.0.0", "6.0.0", "7.0.0", "7.0.70"]


def dialect_of(version: str) -> Dialect:
    dialect = Dialect.of(version)
    assert dialect is not None
    return dialect


def wait_count(name: str, dialect: Dialect) -> int:
    events = [StoredEvent(e["seq"], e["type"], json.dumps(e)) for e in events_of(name)]
    return Waits(
        [event for event in events if event.type == "run.waiting_for_input"], len(events), dialect
    ).count


def frames_of(name: str, dialect: Dialect, **part: int) -> list[bytes]:
    return project_all(events_of(name), AiSdkProjection(RUN_ID, dialect, **part))


def chunks_of(frames: list[bytes]) -> list[dict[str, Any]]:
    assert DONE == frames[-1]
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-1]]


def types_of(chunks: list[dict[str, Any]]) -> list[str]:
    return [chunk["type"] for chunk in chunks]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_the_frames_of_its_golden(name: str, version: str) -> None:
    """The frames of each response to a client of this version stay as they are."""
    dialect = dialect_of(version)
    numbers = range(wait_count(name, dialect) + 1)
    frames = [frames_of(name, dialect, after=number, until=number) for number in numbers]

    check_golden(f"ai_sdk_{version}", name, b"".join(b"".join(parts) for parts in frames))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_replay_has_all_responses_in_one(name: str, version: str) -> None:
    """It is what they are one after the other, without the ends and starts between them.

    Calls of the client have their results, and a page that is loaded again must not make them anew.
    Nor may it ask for approvals again, where its version knows no chunk for the responses: calls
    that were denied have failed there, as the schema has a response in the others.
    """
    dialect = dialect_of(version)
    count = wait_count(name, dialect)
    parts = [chunks_of(frames_of(name, dialect, after=n, until=n)) for n in range(count + 1)]
    joined = [chunk for part in parts[:-1] for chunk in part[:-1]] + parts[-1]
    expected = [c for i, c in enumerate(joined) if c["type"] != "start" or i == 0]
    if not dialect.approval_responses:
        outputs = [e["data"] for e in events_of(name) if e["type"] == "tool.result"]
        texts = {call_ids.shown(RUN_ID, one["tool_call_id"]): one["output"] for one in outputs}
        expected = [
            {**c, "type": "tool-output-error", "errorText": texts[c["toolCallId"]]}
            if c["type"] == "tool-output-denied"
            else c
            for c in expected
            if c["type"] != "tool-approval-request"
        ]

    for chunk in expected:
        if chunk["type"] == "tool-input-available":
            chunk["providerExecuted"] = True

    assert expected == chunks_of(frames_of(name, dialect, until=count))


@pytest.mark.parametrize("name", NAMES)
def test_a_response_begins_with_start_and_ends_with_finish(name: str) -> None:
    """Transports that resume count on both."""
    for until in range(wait_count(name, DEFAULT) + 1):
        types = types_of(chunks_of(frames_of(name, DEFAULT, after=until, until=until)))
        assert ("start", "finish") == (types[0], types[-1])
        assert 1 == types.count("start") == types.count("finish")


def test_a_client_of_5_is_sent_no_approvals() -> None:
    """They come as data, and the stream remains open."""
    types = types_of(chunks_of(frames_of("approvals", dialect_of("5.0.277"))))

    assert 2 == types.count("data-arkloop-input")
    assert set() == {kind for kind in types if "approval" in kind or "denied" in kind}


@pytest.mark.parametrize(
    "value", ["", "a", "12", '"', "NaN", "1e999", "null", 12, 1.5, None, True, {"a": [1]}, ["é"]]
)
def test_an_output_is_restored_from_its_text(value: Any) -> None:
    """What the client's tool has given is what a reload shows."""
    assert value == value_of(text_of(value))


@pytest.mark.parametrize(
    "output", ['"\\ud83d"', '{"a": [1, "\\uDC00x"]}', '{"\\ud800": 1}', "[" * 400 + "]" * 400]
)
def test_a_result_that_cannot_be_sent_as_a_value_is_a_text(output: str) -> None:
    """A client's tool may cut an emoji in two: its text has no lone surrogate, its value has."""
    events = events_of("client_tools")
    for event in events:
        if event["type"] == "tool.result" and event["data"]["tool_call_id"] == "call_1_2":
            event["data"]["output"] = output
    chunks = chunks_of(project_all(events, AiSdkProjection(RUN_ID, until=1)))

    kind = "tool-output-available"
    shown = {c["toolCallId"]: c["output"] for c in chunks if c["type"] == kind}
    assert output == shown[call_ids.shown(RUN_ID, "call_1_2")]


@pytest.mark.parametrize(
    ("of_http", "responses"),
    [((), [["call_1_2", "call_1_4"], []]), (("call_1_4",), [["call_1_2"], []])],
)
def test_a_response_ends_where_the_client_has_to_send_results(
    of_http: tuple[str, ...], responses: list[list[str]]
) -> None:
    """A response continues while HTTP tools of the org that answered 202 are waited for, too."""
    assert responses == [by_client(of_http, number) for number in range(2)]


def test_a_wait_for_http_tools_alone_ends_no_response() -> None:
    """The client has nothing to send; the stream has the results once they are there."""
    of_http = ("call_1_2", "call_1_4")
    chunks = chunks_of(project_all(events_waiting_for(of_http), AiSdkProjection(RUN_ID)))

    assert [] == by_client(of_http, 0)
    assert 1 == types_of(chunks).count("finish")
    assert "completed" == chunks[-1]["messageMetadata"]["arkloop"]["status"]
    assert set(of_http) < {id_of(c) for c in chunks if c["type"] == "tool-output-available"}


@pytest.mark.parametrize(
    ("version", "void"), [("6.0.0", ["data-arkloop-reset"]), ("7.0.70", ["reset-step"])]
)
def test_an_answer_that_was_not_streamed_takes_the_streamed_text_back(
    version: str, void: list[str]
) -> None:
    """An agent worker may stream a text and complete its run with another one."""
    ended = {"usage": {}, "cost_usd": 0, "stop_reason": "stop"}
    happened: list[tuple[str, dict[str, Any]]] = [
        ("message.delta", {"content": "Searching…"}),
        ("message.completed", {"message_id": "m", "content": "It is 42.", "usage": {}}),
        ("run.completed", ended),
    ]
    events = [
        {"seq": seq, "type": kind, "data": data} for seq, (kind, data) in enumerate(happened, 1)
    ]

    chunks = chunks_of(project_all(events, AiSdkProjection(RUN_ID, dialect_of(version))))

    shown = types_of(chunks)
    texts = [c.get("delta") for c in chunks if c["type"] == "text-delta"]
    assert ["Searching…", "It is 42."] == texts
    assert void == [kind for kind in shown if "reset" in kind]
    first, second = (place for place, kind in enumerate(shown) if kind == "text-delta")
    assert first < shown.index(void[0]) < second


@pytest.mark.parametrize("version", VERSIONS)
def test_a_question_with_a_key_is_a_call_of_its_own(version: str) -> None:
    """A custom agent may ask about a step, by the id of its call, or by a key that is none."""
    chunks = chunks_of(frames_of("keyed_questions", dialect_of(version), until=2))

    inputs = {c["toolCallId"]: c for c in chunks if c["type"] == "tool-input-available"}
    calls = list(inputs.values())  # one that stays after a reset comes again
    outputs = {c["toolCallId"]: c["output"] for c in chunks if "output" in c}
    assert [
        ("cancel_order", "Order A1 is cancelled."),
        ("ask_user", "yes"),
        ("ask_user", "No."),
    ] == [(call["toolName"], outputs[call["toolCallId"]]) for call in calls]
    assert [{"order_id": "A1"}, "Shall I cancel it?", "Anything else?"] == [
        call["input"].get("question", call["input"]) for call in calls
    ]


@pytest.mark.parametrize("status", ["cancelled", "failed", "completed"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("length", [6, 8])
def test_a_run_that_ends_leaves_no_call_open(length: int, version: str, status: str) -> None:
    """A page repeats its response to an approval until the call has a result."""
    events = [*events_of("approvals")[:length], ended(length + 1, status)]
    projection = AiSdkProjection(RUN_ID, dialect_of(version), until=1)
    chunks = chunks_of(project_all(events, projection))

    calls = [c["toolCallId"] for c in chunks if c["type"] == "tool-input-available"]
    results = {c["toolCallId"]: c["type"] for c in chunks if c["type"].startswith("tool-output")}
    # Without an answer, the call is not made. Replays for 6.0.0 leave the request for it out.
    is_denied = version not in ("5.0.0", "6.0.0") and length == 6
    first = "tool-output-denied" if is_denied else "tool-output-error"
    assert dict(zip(calls, [first, "tool-output-error"], strict=True)) == results
    last = {"cancelled": "abort", "failed": "error", "completed": "finish"}
    end = types_of(chunks).index(last[status])
    assert end > max(place for place, c in enumerate(chunks) if c["type"].startswith("tool-output"))


@pytest.mark.parametrize(
    ("recorded", "length", "states"),
    [
        ("approvals", 6, ["output-denied", "output-error"]),
        ("approvals", 8, ["output-error", "output-error"]),
        ("approvals", 11, ["output-error", "output-denied"]),
        ("question", 6, ["output-error"]),
        ("streamed_arguments", 3, ["output-error"]),
        ("streamed_arguments", 6, ["output-error", "output-error"]),
    ],
)
def test_a_stored_message_has_no_open_call_either(
    recorded: str, length: int, states: list[str]
) -> None:
    """An approval in it is one that was answered, as `validateUIMessages` requires."""
    events = [*events_of(recorded)[:length], ended(length + 1, "cancelled")]
    calls = [part for part in parts_of(events) if "toolCallId" in part]

    assert states == [call["state"] for call in calls]
    assert all("input" in call for call in calls)
    answers = [(c["state"], c["approval"]["approved"]) for c in calls if "approval" in c]
    assert all(approved == (state != "output-denied") for state, approved in answers)


@pytest.mark.parametrize(
    ("status", "last"),
    [("cancelled", ["abort", "start-step"]), ("failed", ["error"]), ("completed", ["finish"])],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_that_ends_in_mid_arguments_leaves_no_call_open(
    version: str, status: str, last: list[str]
) -> None:
    """A call whose arguments were being streamed is no call that is made later."""
    events = [*events_of("streamed_arguments")[:5], ended(6, status)]
    chunks = chunks_of(project_all(events, AiSdkProjection(RUN_ID, dialect_of(version))))

    begun, errors = ids_of(chunks, "tool-input-start"), ids_of(chunks, "tool-output-error")
    assert ["call_1_1", "call_1_2"] == begun == errors
    after = [kind for kind in types_of(chunks) if kind != "finish-step"]
    place = len(after) - after[::-1].index("tool-output-error")
    assert last == after[place : place + len(last)]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_turn_that_starts_over_ends_the_calls_it_was_writing(version: str) -> None:
    """Clients without `reset-step` get a chunk for it that all of them know."""
    reset = {"seq": 6, "type": "message.reset", "data": {"from_seq": 2, "reason": "output"}}
    events = [*events_of("streamed_arguments")[:5], reset, ended(7, "cancelled")]
    chunks = chunks_of(project_all(events, AiSdkProjection(RUN_ID, dialect_of(version))))

    ended_calls = [] if version == "7.0.70" else ["call_1_1", "call_1_2"]
    assert ended_calls == ids_of(chunks, "tool-output-error")
    assert "tool-input-error" not in types_of(chunks)


@pytest.mark.parametrize("approves", [False, True])
def test_text_before_a_question_stays_until_its_answer(approves: bool) -> None:
    """A person needs it; a custom agent that has asked in mid-turn then begins the turn anew."""
    events = events_of("keyed_questions")
    if approves:  # of the call before the text, in place of its result
        asked = {"kind": "tool_confirmation", "tool_call_id": "cancel-1"}
        events[10]["data"] = {**events[10]["data"], **asked}
        events[12]["data"]["content"] = "yes"
        del events[9]
    place = next(at for at, event in enumerate(events) if event["type"] == "message.reset")

    before, after = parts_of(events[: place - 2]), parts_of(events)
    texts = [[part["text"] for part in parts if "text" in part] for parts in (before, after)]
    assert [["Let me see. ", "Let me see. Done. "]] * 2 == texts
    answers = [p.get("output") for p in after if p["type"] == "tool-ask_user"]
    assert (["yes"] if approves else ["yes", "No."]) == answers
    question = [] if approves else ["tool-ask_user"]
    first = ["text", "tool-cancel_order", "tool-ask_user"]
    kinds = [
        [kind for part in parts if (kind := part["type"]) != "step-start"]
        for parts in (before, after)
    ]
    assert [[*first, "text", *question], [*first, *question, "text"]] == kinds


@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_clients_without_resets_learn_that_text_before_a_question_is_void(version: str) -> None:
    """As elsewhere, the text stays in the message, and a part after it says so."""
    types = types_of(chunks_of(frames_of("keyed_questions", dialect_of(version), until=2)))

    void = types.index("data-arkloop-reset")
    assert ("finish-step", "start-step") == (types[void - 3], types[void + 1])
    assert 1 == types.count("data-arkloop-reset")


def test_a_call_of_a_client_tool_gets_its_input_where_the_run_waits_for_it() -> None:
    """A page that had executed it before would lose the output: it is sent the input only once."""
    chunks = chunks_of(project_all(events_of_client_tool(), AiSdkProjection(RUN_ID)))

    shown = [
        (chunk["type"].removeprefix("tool-"), id_of(chunk))
        for chunk in chunks
        if "toolCallId" in chunk
    ]
    assert [
        ("input-available", "call_1_1"),
        ("input-start", "call_1_2"),
        ("input-available", "call_1_3"),
        ("input-start", "call_1_4"),
        ("output-available", "call_1_1"),
        ("input-available", "call_1_2"),
        ("input-available", "call_1_4"),
    ] == shown


@pytest.mark.parametrize("dialect", [dialect_of("5.0.0"), NEWEST._replace(org_approvals=False)])
def test_a_call_of_a_client_tool_is_approved_by_its_arguments(dialect: Dialect) -> None:
    """A page that executes calls as soon as it has their inputs gets none before the approval."""
    events, projection = events_of("approvals")[:6], AiSdkProjection(RUN_ID, dialect)
    events[2]["data"]["result_from"], events[5]["data"]["approved_by"] = "client", "org"
    *before, asked = [chunk for event in events for chunk in projection.chunks(event)]

    assert ["call_1_2"] == ids_of(before, "tool-input-available")
    assert ("data-arkloop-input", {"expression": "6*7"}) == (
        asked["type"],
        asked["data"].get("arguments"),
    )


@pytest.mark.parametrize("length", [9, 15])
def test_a_call_of_a_client_tool_has_its_input_after_a_reload(length: int) -> None:
    """The run may have ended before it has waited for the result."""
    events = events_of("client_tools")[:length]
    of_client = events_of_client_tool()[:length]
    last = ended(length + 1, "cancelled")

    assert parts_of([*events, last]) == parts_of([*of_client, last])


def parts_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of the message that a page loads after these events."""
    stored = [StoredEvent(event["seq"], event["type"], json.dumps(event)) for event in events]
    return list(assistant_message(RUN_ID, stored)["parts"])


def ended(seq: int, status: str) -> dict[str, Any]:
    """Return the last event of a run."""
    error = {"code": "run.deadline_exceeded", "message": "Too late.", "retryable": False}
    own = {"failed": {"error": error}, "completed": {"stop_reason": "stop", "output": None}}
    data = {"usage": {}, "cost_usd": 0, **own.get(status, {})}
    return {"seq": seq, "type": f"run.{status}", "data": data}


def events_waiting_for(of_http: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a recorded run that waits for results, these of them from HTTP tools."""
    events = events_of("client_tools")
    for call in (call for event in events for call in event["data"].get("calls") or ()):
        if call["tool_call_id"] in of_http:
            call["result_from"] = "http"
    return events


def events_of_client_tool() -> list[dict[str, Any]]:
    """Return a recorded run whose calls say whose they are."""
    events = events_of("client_tools")
    for event in events:
        if event["type"] == "tool.call" and event["data"]["name"] == "locate":
            event["data"]["result_from"] = "client"
    return events


def by_client(of_http: tuple[str, ...], number: int) -> list[str]:
    """Return the calls that a response leaves to the client."""
    projection = AiSdkProjection(RUN_ID, after=number, until=number)
    chunks = chunks_of(project_all(events_waiting_for(of_http), projection))
    inputs = [chunk for chunk in chunks if chunk["type"] == "tool-input-available"]
    return [id_of(chunk) for chunk in inputs if not chunk["providerExecuted"]]


def ids_of(chunks: list[dict[str, Any]], kind: str) -> list[str]:
    """Return the ids that the run has for the calls of these chunks."""
    return [id_of(chunk) for chunk in chunks if chunk["type"] == kind]


def id_of(chunk: dict[str, Any]) -> str:
    """Return the id that the run has for the call of a chunk."""
    return call_ids.stored(RUN_ID, chunk["toolCallId"])
