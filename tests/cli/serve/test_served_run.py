"""The run of a served agent: its messages, and what an earlier execution has left."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from arkloop.cli.serve.served_run import ServedRun
from arkloop.cli.serve.service import Service
from arkloop.shared.agents.agent_run import DelegatedTask, RunStopped
from arkloop.worker.attempt import agent_messages
from arkloop.worker.contract.attachments import parts_of
from arkloop.worker.contract.messages import UserMessage
from tests.cli.serve.polled_runs import RUN
from tests.cli.serve.scripted_service import scripted_service

Event = dict[str, Any]
CALL = {"id": "a", "name": "look", "arguments": {}}
FILE_ID = "01a2278d-0000-7000-8000-000000000000"
#: The parts of a message as its thread has them, and the files among them as an agent does.
PARTS: list[dict[str, Any]] = [
    {"type": "text", "text": "Look."},
    {
        "type": "image",
        "file_id": FILE_ID,
        "file": {"name": "a.png", "media_type": "image/png", "size": 7},
    },
    {"type": "file", "url": "https://example.com/a.pdf"},
]
FILES = [
    {"kind": "image", "file_id": FILE_ID, "name": "a.png", "media_type": "image/png", "size": 7},
    {"kind": "file", "url": "https://example.com/a.pdf"},
]
LOST = {**RUN, "fence": 1, "messages": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]}


@pytest.fixture
def lost() -> Iterator[tuple[ServedRun, list[Event]]]:
    """The run, and the events that the service gets."""
    sent: list[Event] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.extend(body["events"])
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, LOST, threading.Event())
        yield run, sent
        run.outbox.close()
        service.close()


def test_messages_name_their_files_as_in_a_worker_of_the_service() -> None:
    """One agent reads the same fields in both."""
    message = {"role": "user", "content": "Look.", "files": PARTS[1:]}
    polled = {**RUN, "fence": 1, "messages": [message]}
    with scripted_service(lambda *_: (500, {})) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, polled, threading.Event())
        run.outbox.close()
        service.close()

    [inside] = agent_messages.shown([UserMessage("Look.", parts=parts_of(PARTS))])
    assert [inside] == run.messages == [{**message, "files": FILES}]


def test_a_call_that_is_made_again_is_not_settled_meanwhile(
    lost: tuple[ServedRun, list[Event]],
) -> None:
    """A further call begins while it is in progress, and its result is that of its repetition."""
    run, sent = lost

    def look() -> str:
        return run.step("pay", {}, lambda: "paid", tool_call_id="b")

    assert "paid" == run.step("look", {}, look, tool_call_id="a", idempotent=True)

    results = [event for event in sent if event["type"] == "tool.result"]
    assert [("b", "paid"), ("a", "paid")] == [
        (event["tool_call_id"], event["output"]) for event in results
    ]


def test_an_id_is_that_of_one_call(lost: tuple[ServedRun, list[Event]]) -> None:
    """Another call under it raises: the agent would take the first one's result for its own."""
    run, _ = lost
    run.step("pay", {"amount": 5}, lambda: "paid", tool_call_id="b")

    for other in ({"name": "refund", "arguments": {"amount": 5}}, {"name": "pay", "arguments": {}}):
        with pytest.raises(ValueError, match="another name or other arguments"):
            run.step(**other, function=lambda: "", tool_call_id="b")
        with pytest.raises(ValueError, match="another name or other arguments"):
            run.tool_call(**other, tool_call_id="b")
    assert "paid" == run.step("pay", {"amount": 5}, lambda: "", tool_call_id="b")


def test_an_id_is_that_of_one_task() -> None:
    """Its result is that of its sub-run; another task under the id raises, and is not sent."""
    call = {"id": "a", "name": "delegate", "arguments": {"persona": "plain", "task": "Refund A1."}}
    done = {"role": "tool", "content": "Done.", "tool_call_id": "a", "name": "delegate"}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    claimed = {**RUN, "fence": 1, "messages": [turn, done]}
    with scripted_service(lambda *_: (500, {})) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, claimed, threading.Event())
        for other in (("plain", "Refund B2."), ("assistant", "Refund A1.")):
            with pytest.raises(ValueError, match="another name or other arguments"):
                run.delegate(*other, tool_call_id="a")
        assert "Done." == run.delegate("plain", "Refund A1.", tool_call_id="a").output
        run.outbox.close()
        service.close()


def test_a_run_of_a_service_of_the_release_before_is_executed() -> None:
    """The previous release sends neither `approvals` nor `begun`."""
    old = {name: value for name, value in LOST.items() if name not in ("approvals", "begun")}
    with scripted_service(
        lambda *_: (200, {"status": "running", "cancel_requested": False, "next_seq": 9})
    ) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, old, threading.Event())
        assert "paid" == run.step("pay", {}, lambda: "paid", tool_call_id="b")
        run.outbox.close()
        service.close()


@pytest.mark.parametrize("schema", [None, {"type": "object"}])
def test_an_answer_that_an_earlier_execution_gave_is_not_streamed_again(
    schema: dict[str, Any] | None,
) -> None:
    """It is that answer as the service has stored it, with U+FFFD for NUL."""
    sent: list[dict[str, Any]] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.append(body)
        return 200, {"status": "completed", "cancel_requested": False, "next_seq": 9}

    answered = {**RUN, "fence": 1, "last_turn": '{"a": "\ufffd"}', "output_schema": schema}
    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, answered, threading.Event())
        run.finish('{"a": "\0"}')
        run.outbox.close()
        service.close()

    [end] = sent
    assert (answered["last_turn"], []) == (end["content"], end["events"])


@pytest.mark.parametrize("said", ['{"a": 1, "b": [2]}', '{"a":1,"b":[2]}'])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_an_object_that_was_streamed_as_text_is_not_said_again(
    said: str, is_checkpointed: bool
) -> None:
    """Its text is that which the agent has streamed, with spaces or without."""
    sent: list[dict[str, Any]] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.append(body)
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    claimed = {**RUN, "fence": 1, "output_schema": {"type": "object"}}
    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, claimed, threading.Event())
        run.text(said)
        if is_checkpointed:
            run.checkpoint(1)
        run.finish({"a": 1, "b": [2]})
        run.outbox.close()
        service.close()

    events = [event for body in sent for event in body["events"]]
    assert ["message.delta", "message.completed"] == [event["type"] for event in events]
    assert said == sent[-1]["content"]


@pytest.mark.parametrize(
    ("polled", "refused", "kept"),
    [({"unbegun": []}, False, ["a", "c"]), ({}, False, None), ({"unbegun": []}, True, None)],
)
def test_a_question_says_which_calls_have_not_begun(
    polled: dict[str, Any], refused: bool, kept: list[str] | None
) -> None:
    """The step that asks is one of them; services of the release before do not hear of it."""
    sent: list[dict[str, Any]] = []

    def respond(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if verb == "ask" and refused and "unbegun" in body:
            error = {"code": "validation.error", "message": "", "details": {"unbegun": ["unknown"]}}
            return 422, error
        sent.append(body)
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, {**RUN, "fence": 1, **polled}, threading.Event())
        for call_id in ("a", "b", "c"):
            run.tool_call("pay", {}, tool_call_id=call_id)
        run.step("pay", {}, lambda: "paid", tool_call_id="b")
        with pytest.raises(RunStopped):
            run.step("pay", {}, lambda: run.ask("Go?"), tool_call_id="c")
        run.outbox.close()
        service.close()

    assert ("Go?", kept) == (sent[-1]["question"], sent[-1].get("unbegun"))


@pytest.mark.parametrize("key", [None, "k"])
def test_an_answered_question_has_no_limits(key: str | None) -> None:
    """The release before accepted a longer one, and more options."""
    question = "G" * 9000
    answers = [{"key": key, "question": question, "answer": "yes"}]
    with scripted_service(lambda *_: (500, {})) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, {**RUN, "fence": 1, "answers": answers}, threading.Event())
        assert "yes" == run.ask(question, ["no"] * 21, key=key)
        run.outbox.close()
        service.close()


@pytest.mark.parametrize("stored", ["refund of order 7", "schl\u00fcssel\ufffd"])
def test_the_key_of_a_question_is_any_text(stored: str) -> None:
    """It is sent as it is stored, and recognised as such in the next execution."""
    key, sent = stored.replace("\ufffd", "\0"), list[dict[str, Any]]()

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.append(body)
        return 200, {"status": "waiting_for_input", "cancel_requested": False, "next_seq": 9}

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, {**RUN, "fence": 1}, threading.Event())
        with pytest.raises(ValueError, match="1 to 128 characters"):
            run.ask("Sure?", key="k" * 129)
        with pytest.raises(RunStopped):
            run.ask("Sure?", key=key)
        run.outbox.close()
        [asked] = sent
        answers = [{"key": asked["key"], "question": "Sure?", "answer": "yes"}]
        run = ServedRun(service, {**RUN, "fence": 2, "answers": answers}, threading.Event())
        assert (stored, "yes") == (asked["key"], run.ask("Sure?", key=key))
        run.outbox.close()
        service.close()


@pytest.mark.parametrize(
    ("known", "step", "kept"),
    [([], None, None), ([], "b", ["c", "d"]), (["a"], None, ["a", "b", "c", "d"])],
)
def test_a_release_says_which_calls_have_not_begun_if_the_agent_makes_steps(
    known: list[str], step: str | None, kept: list[str] | None
) -> None:
    """Without one it may be within a call that it makes by hand."""
    sent: list[dict[str, Any]] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.append(body)
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, {**LOST, "unbegun": known}, threading.Event())
        for call_id in ("b", "c", "d"):
            run.tool_call("pay", {}, tool_call_id=call_id)
        if step is not None:
            run.step("pay", {}, lambda: "paid", tool_call_id=step)
        run.release()
        run.outbox.close()
        service.close()

    assert kept == sent[-1].get("unbegun")


def test_a_step_that_asks_for_its_own_approval_is_to_be_made_again() -> None:
    """The service forgets that it has begun."""
    sent: list[dict[str, Any]] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.append(body)
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, {**LOST, "unbegun": ["a"]}, threading.Event())
        with pytest.raises(RunStopped):
            run.step(
                "look", {}, lambda: run.approve("look", {}, tool_call_id="a"), tool_call_id="a"
            )
        run.outbox.close()
        service.close()

    assert [["a"], None] == [body.get("begun") for body in sent]
    assert ("a", ["a"]) == (sent[-1]["approval_of"], sent[-1]["unbegun"])


def test_a_call_that_had_not_begun_is_made() -> None:
    """The service hears of it before, and the call is not one whose outcome is unknown."""
    begun: list[list[str]] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        begun.extend([body["begun"]] if "begun" in body else [])
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, {**LOST, "unbegun": ["a"]}, threading.Event())
        assert ([], 1) == ([*run.pending_calls], len(run.messages))
        assert "[['a']]" == run.step("look", {}, lambda: begun, tool_call_id="a")
        run.outbox.close()
        service.close()


@pytest.mark.parametrize("reply", ["yes", "no"])
def test_a_task_whose_call_is_on_record_is_given_out_without_a_turn(reply: str) -> None:
    """A person has approved it, or the agent has recorded it just now; a denied one is not."""
    sent: list[dict[str, Any]] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.append(body)
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    made = {"persona": "p", "task": "t"}
    tasks: list[DelegatedTask] = [
        {"persona": "p", "task": "t", "tool_call_id": id_} for id_ in "ab"
    ]
    call = {"id": "a", "name": "delegate", "arguments": made}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    replies = [{"tool_call_id": "a", "arguments": made, "answer": reply}]
    polled = {**RUN, "fence": 1, "messages": [turn], "approvals": replies, "unbegun": []}
    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, polled, threading.Event())
        run.tool_call("delegate", made, tool_call_id="b")
        with pytest.raises(RunStopped):
            run.delegate_all(tasks)
        run.outbox.close()
        service.close()

    given = [one["tool_call_id"] for one in sent[-1]["tasks"]]
    assert (["a", "b"] if reply == "yes" else ["b"]) == given
    assert [] == sent[-1].get("unbegun", [])
    results = [one for body in sent for one in body["events"] if one["type"] == "tool.result"]
    assert ([] if reply == "yes" else ["The call was denied: no"]) == [r["output"] for r in results]
    assert "message.completed" not in [one["type"] for one in sent[-1]["events"]]


def test_a_result_of_a_sub_run_is_whole_or_says_that_it_is_cut() -> None:
    """The messages have a part of a long one, which may be broken JSON."""
    task: DelegatedTask = {"persona": "p", "task": "t", "tool_call_id": ""}
    calls = [
        {"id": id_, "name": "delegate", "arguments": {"persona": "p", "task": "t"}} for id_ in "abc"
    ]
    results = [{"role": "tool", "content": "…", "tool_call_id": id_} for id_ in "abc"]
    messages = [{"role": "assistant", "content": "", "tool_calls": calls}, *results]
    whole = [{"tool_call_id": "a", "output": "Whole."}, {"tool_call_id": "b", "output": None}]
    polled = {**RUN, "fence": 1, "messages": messages, "sub_run_results": whole}
    with scripted_service(lambda *_: (500, {})) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, polled, threading.Event())
        found = run.delegate_all([{**task, "tool_call_id": id_} for id_ in "abc"])
        run.outbox.close()
        service.close()

    assert [("Whole.", False), ("…", True), ("…", False)] == [
        (one.output, one.is_cut) for one in found
    ]


def test_questions_and_costs_have_the_limits_of_the_service(
    lost: tuple[ServedRun, list[Event]],
) -> None:
    """They raise what they raise in the service, and nothing is sent that it refuses."""
    run, sent = lost
    for question in ("", "G" * 8193):
        with pytest.raises(ValueError, match="1 to 8,192 characters"):
            run.ask(question)
    with pytest.raises(ValueError, match="between 0 and 1,000,000 USD"):
        run.cost(-1.0)

    assert [] == sent


def test_the_cost_of_a_model_without_a_name_is_that_of_the_runs_model(
    lost: tuple[ServedRun, list[Event]],
) -> None:
    """An empty name is none, as in the service."""
    run, sent = lost

    run.cost(model="", input_tokens=3)

    assert [(None, 3)] == [(cost["model"], cost["input_tokens"]) for cost in sent]
