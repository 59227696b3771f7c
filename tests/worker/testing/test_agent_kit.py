"""The part of the test kit that plays custom agents."""

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from arkloop.agents import AgentRun, InvalidCallId, Message, RunStopped, SubRunResult, ToolFailed
from arkloop.testing import play_agent


def clerk(run: AgentRun) -> str | None:
    """Return the price of what the last message names."""
    last = run.messages[-1]["content"]
    run.thinking("Hm.")
    run.text("Let me see.")
    price = run.step("price", {"sku": last}, {"tea": lambda: 3}[last], tool_call_id="p")
    run.cost(0.5, model="gpt-4o", input_tokens=7)
    run.checkpoint({"price": price})
    if run.ask("Buy it?", ["yes", "no"]) == "no":
        return None
    return f"{price} EUR, {run.end_user_id} of {run.metadata['shop']}."


def test_an_agent_is_played_with_its_events() -> None:
    """The events are those that clients of the run would get, and the checkpoint is shown."""
    run = play_agent(
        clerk, "tea", answers={"Buy it?": "yes"}, end_user_id="anna", metadata={"shop": "s"}
    )

    assert ("completed", "3 EUR, anna of s.") == (run.status, run.output)
    assert {"price": "3"} == run.checkpoint
    assert [("price", "3", False)] == [(r.tool_name, r.output, r.is_error) for r in run.results]
    assert [
        "run.started",
        "message.thinking",
        "message.delta",
        "message.completed",
        "tool.call",
        "tool.result",
        "run.cost",
        "message.delta",
        "message.completed",
        "run.completed",
    ] == [event["type"] for event in run.events]
    assert [0.5] == [data["cost_usd"] for data in run.data_of("run.completed")]
    assert ["gpt-4o"] == [data["routes"][0]["model"] for data in run.data_of("run.cost")]


def test_a_coroutine_is_played_too() -> None:
    """An agent may be a coroutine function; a streamed answer needs no returned one."""

    async def agent(run: AgentRun) -> None:
        run.text("Hello, ")
        run.text("you.")

    run = play_agent(agent, "Hi.")

    assert ("completed", "Hello, you.") == (run.status, run.output)
    assert ["Hello, you."] == [data["content"] for data in run.data_of("message.delta")]


def test_a_question_without_an_answer_leaves_the_run_waiting() -> None:
    """The agent is stopped there; what it returns after that does not count."""

    def stubborn(run: AgentRun) -> str:
        with contextlib.suppress(RunStopped):
            run.ask("Sure?", key="sure")
        with pytest.raises(RunStopped, match="waiting"):
            run.text("more")
        return "anyway"

    run = play_agent(stubborn, "Hi.")

    assert ("waiting_for_input", None) == (run.status, run.output)
    assert [("Sure?", "sure")] == [
        (data["prompt"], data["tool_call_id"]) for data in run.data_of("run.waiting_for_input")
    ]


@pytest.mark.parametrize(
    ("returned", "persona", "code"),
    [
        (KeyError("a password"), {}, "agent.failed"),
        (7, {}, "agent.failed"),
        ({"a": 1}, {"output_schema": {"type": "object", "required": ["b"]}}, "output.invalid"),
        ({"b": 1}, {"output_schema": {"type": "object", "required": ["b"]}}, None),
    ],
)
def test_what_an_agent_returns_is_checked(
    returned: Any, persona: dict[str, Any], code: str | None
) -> None:
    """An exception and an answer of another form fail the run, as in a worker."""

    def agent(run: AgentRun) -> Any:
        if isinstance(returned, Exception):
            raise returned
        return returned

    run = play_agent(agent, "Hi.", persona=persona)

    assert code == (run.error or {}).get("code")
    assert "password" not in str(run)
    assert (returned if code is None else None) == run.output


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            {"n": Decimal(1)},
            "The agent returned an object that is not JSON: Object of type Decimal is not JSON"
            " serializable.",
        ),
        (
            date(2027, 1, 1),
            "The agent returned no object, which its output schema requires, but date: Object of"
            " type date is not JSON serializable.",
        ),
    ],
)
def test_the_error_names_the_type_that_json_does_not_have(returned: Any, message: str) -> None:
    """The author reads what to convert, and whether an object was returned at all."""
    run = play_agent(lambda _: returned, "Hi.", persona={"output_schema": {"type": "object"}})

    assert ("agent.failed", message) == ((run.error or {})["code"], (run.error or {})["message"])


def test_an_invalid_id_of_a_call_is_explained() -> None:
    """The run's error says the limit, and an agent can catch the exception by its name."""
    caught: list[str] = []

    def agent(run: AgentRun) -> None:
        try:
            run.tool_call("pay", {}, tool_call_id="p" * 200)
        except InvalidCallId as error:
            caught.append(str(error))
            raise

    run = play_agent(agent, "Hi.")

    assert f"The agent failed: InvalidCallId. {caught[0]}" == (run.error or {})["message"]


@pytest.mark.parametrize("said", ['{"b": [1, 2]}', '{"b":[1,2]}'])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_an_object_that_was_streamed_as_text_is_not_said_again(
    said: str, is_checkpointed: bool
) -> None:
    """Its text is that which the agent has streamed, with spaces or without."""

    def agent(run: AgentRun) -> dict[str, Any]:
        run.text(said)
        if is_checkpointed:
            run.checkpoint(None)
        return {"b": [1, 2]}

    run = play_agent(agent, "Hi.", persona={"output_schema": {"type": "object"}})

    assert ({"b": [1, 2]}, "completed") == (run.output, run.status)
    assert [] == run.data_of("message.reset")
    assert [said] == [data["content"] for data in run.data_of("message.completed")]


def test_an_execution_begins_with_a_checkpoint_and_its_conversation() -> None:
    """An agent can be tested from the middle of its work."""

    def agent(run: AgentRun) -> str:
        return f"{len(run.messages)} {run.checkpoint_data['place']} {run.instructions}"

    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    run = play_agent(
        agent, conversation, checkpoint={"place": 9}, persona={"system_prompt": "Sell."}
    )

    assert "2 9 Sell." == run.output


def test_sub_runs_have_the_outputs_of_the_test() -> None:
    """Where one is missing, the run waits for its sub-runs."""

    def agent(run: AgentRun) -> str:
        draft = run.delegate("writer", "Write.", tool_call_id="draft")
        check = run.delegate("critic", draft.output, tool_call_id="check")
        return "refused" if check.is_error else check.output

    persona = {"delegates": ["writer", "critic"]}
    refused = SubRunResult("No.", is_error=True)
    waits = play_agent(agent, "Hi.", persona=persona, sub_runs={"draft": "A draft."})
    ends = play_agent(
        agent, "Hi.", persona=persona, sub_runs={"draft": "A draft.", "check": refused}
    )

    assert ("completed", "refused") == (ends.status, ends.output)
    calls = [data["arguments"] for data in ends.data_of("tool.call")]
    assert {"persona": "critic", "task": "A draft."} == calls[1]
    assert "running" == waits.status
    assert [["check"]] == [data["tool_call_ids"] for data in waits.data_of("run.suspended")]


@pytest.mark.parametrize("reply", ["yes", "no"])
def test_a_task_whose_call_is_on_record_has_the_output_of_the_test(reply: str) -> None:
    """A person has approved it, or the agent has recorded it by hand."""

    def agent(run: AgentRun) -> str:
        task = {"persona": "writer", "task": "Write."}
        run.approve("delegate", task, tool_call_id="a")
        run.tool_call("delegate", task, tool_call_id="b")
        given = run.delegate_all([{**task, "tool_call_id": id_} for id_ in "ab"])
        return " ".join(one.output for one in given)

    given = {"persona": {"delegates": ["writer"]}, "answers": {"a": reply}}
    ends = play_agent(agent, "Hi.", sub_runs={"a": "A draft.", "b": "Another."}, **given)
    waits = play_agent(agent, "Hi.", sub_runs={"a": "A draft."}, **given)

    made = "A draft." if reply == "yes" else "The call was denied: no"
    assert f"{made} Another." == ends.output
    assert 2 == len(ends.data_of("tool.call"))
    assert [["b"]] == [data["tool_call_ids"] for data in waits.data_of("run.suspended")]


def test_an_id_is_that_of_one_task() -> None:
    """A test finds what fails the run in a service: another task under a used id."""

    def agent(run: AgentRun) -> str:
        for order in ("A1", "A1", "B2"):
            run.delegate("writer", f"Refund {order}.", tool_call_id="refund")
        return "Done."

    run = play_agent(agent, "Hi.", persona={"delegates": ["writer"]}, sub_runs={"refund": "ok"})

    assert ("failed", 1) == (run.status, len(run.data_of("tool.call")))


def test_a_long_output_of_a_sub_run_is_whole() -> None:
    """The event has a part of it, as in a service."""
    given = {"rows": "x" * 70_000}

    def agent(run: AgentRun) -> str:
        found = run.delegate("plain", "List them.", tool_call_id="list")
        return str(json.loads(found.output) == given)

    persona = {"delegates": ["plain"]}
    played = play_agent(agent, "Hi.", persona=persona, sub_runs={"list": json.dumps(given)})

    assert "True" == played.output


def test_files_have_the_contents_of_the_test() -> None:
    """A file without content counts as deleted, and one that no message names is unknown."""

    def agent(run: AgentRun) -> str:
        found = [run.file("a").decode()]
        for file_id in ("b", "c"):
            with pytest.raises(LookupError) as error:
                run.file(file_id)
            found.append(str(error.value))
        return " ".join(found)

    files = [{"kind": "file", "file_id": name, "media_type": "text/plain"} for name in "ab"]
    message: Message = {"role": "user", "content": "Read.", "files": files}
    run = play_agent(agent, [message], files={"a": b"noon"})

    assert "noon The file b was deleted. The messages of the run name no file 'c'." == run.output


def test_a_test_approves_or_denies_calls_by_their_ids() -> None:
    """The reply is read as a person's; without one the run waits, with the call on record."""

    def agent(run: AgentRun) -> str:
        run.approve("pay", {"amount": 5}, tool_call_id="pay-1")
        return run.step("pay", {"amount": 5}, lambda: "paid", tool_call_id="pay-1")

    assert "paid" == play_agent(agent, "Hi.", answers={"pay-1": "yes"}).output
    assert "The call was denied: no" == play_agent(agent, "Hi.", answers={"pay-1": "no"}).output
    waits = play_agent(agent, "Hi.")
    assert "waiting_for_input" == waits.status
    assert ["pay-1"] == [data["tool_call_id"] for data in waits.data_of("tool.call")]
    assert ["tool_confirmation"] == [d["kind"] for d in waits.data_of("run.waiting_for_input")]


def test_a_step_has_a_time_limit_and_an_idempotency_key() -> None:
    """Its thread is abandoned at the end of the time, and the model reads so; one that is in time
    has its value, or the class of its exception.
    """
    never = threading.Event()

    def patient(run: AgentRun) -> str:
        def fail() -> None:
            raise ValueError("secret")

        for name, function in (("late", never.wait), ("good", lambda: 7), ("bad", fail)):
            run.step(name, {}, function, tool_call_id=name, timeout_seconds=0.2)
        return run.idempotency_key("late").removeprefix(run.run_id)

    run = play_agent(patient, "Go.")
    never.set()

    late, *others = [(r.output, r.is_error) for r in run.results]
    assert ("The tool did not return within 0.2 s; the call may still take effect.", True) == late
    assert [("7", False), ("The tool failed: ValueError.", True)] == others
    assert ":late" == run.output


def test_a_step_can_tell_the_model_why_it_failed() -> None:
    """The text of `ToolFailed` is the result, and that of any other exception is not."""

    def look(error: Exception) -> str:
        raise error

    def agent(run: AgentRun) -> None:
        run.step("look", {}, lambda: look(ToolFailed("No such order.")), tool_call_id="a")
        run.step("look", {}, lambda: look(ValueError("secret")), tool_call_id="b")

    run = play_agent(agent, "Hi.")

    assert [("No such order.", True), ("The tool failed: ValueError.", True)] == [
        (result.output, result.is_error) for result in run.results
    ]


async def _cancelled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("timeout_seconds", [None, 30])
def test_a_step_that_exits_or_is_cancelled_is_a_failed_call(timeout_seconds: float | None) -> None:
    """Parsers of command lines exit, and what a step awaits may be cancelled: the run continues."""

    def agent(run: AgentRun) -> str:
        for name, function in (("a", sys.exit), ("b", lambda: asyncio.run(_cancelled()))):
            run.step(name, {}, function, tool_call_id=name, timeout_seconds=timeout_seconds)
        return run.step("c", {}, lambda: run.ask("Go?"), tool_call_id="c")

    run = play_agent(agent, "Hi.", answers={"Go?": "yes"})

    assert ("completed", "yes") == (run.status, run.output)
    assert ["The tool failed: SystemExit.", "The tool failed: CancelledError.", "yes"] == [
        result.output for result in run.results
    ]
    assert "waiting_for_input" == play_agent(agent, "Hi.").status


def test_a_step_does_not_take_a_coroutine_for_a_result() -> None:
    """A coroutine function is refused before the call is recorded; a coroutine is an error."""
    made: list[str] = []

    async def book() -> str:
        made.append("booked")
        return "booked"

    def agent(run: AgentRun) -> None:
        with pytest.raises(ValueError, match="coroutine function"):
            run.step("book", {}, book, tool_call_id="a")
        run.step("book", {}, lambda: book(), tool_call_id="b")
        run.step("book", {}, lambda: asyncio.run(book()), tool_call_id="c")

    run = play_agent(agent, "Hi.")

    failed = "The tool failed: it returned a coroutine, which a step does not await."
    assert [("b", failed, True), ("c", "booked", False)] == [
        (data["tool_call_id"], data["output"], data["is_error"])
        for data in run.data_of("tool.result")
    ]
    assert ["booked"] == made


@pytest.mark.parametrize(
    "use",
    [
        lambda run: run.ask(""),
        lambda run: run.ask("G" * 8193),
        lambda run: run.ask("Go?", ["x"] * 21),
        lambda run: run.ask("Go?", [""]),
        lambda run: run.cost(-1.0),
    ],
)
def test_what_no_worker_accepts_raises(use: Callable[[AgentRun], Any]) -> None:
    """A question and a cost have the same limits in a test, a worker and an agent worker."""

    def agent(run: AgentRun) -> None:
        with pytest.raises(ValueError, match=r"must be|A question"):
            use(run)

    assert "completed" == play_agent(agent, "Hi.").status
