"""The conversation that a run's model sees. One word is one token: usage measures it exactly."""

from arkloop.shared.catalog import personas
from tests.caller import Caller, script, types

CALCULATE = {"tool": "calculator", "args": {"expression": "20+22"}}
PROMPT = personas.builtin()["assistant@1"].system_prompt


def words(*texts: str) -> int:
    return sum(len(text.split()) for text in texts)


def test_later_runs_see_earlier_tool_turns(user: Caller) -> None:
    """Calls and results of a run are part of what the thread's later runs see."""
    one = script({"say": "I count."}, CALCULATE, {"say": "It is 42."})
    thread_id = user.thread(one)
    first = user.ended(user.start(thread_id))
    user.say(thread_id, "And now?")
    second = user.ended(user.start(thread_id))

    assert first["usage"]["input_tokens"] == words(PROMPT, one) + words(PROMPT, one, "I count. 42")
    assert second["usage"]["input_tokens"] == words(
        PROMPT, one, "I count.", "42", "It is 42.", "And now?"
    )


def test_a_message_sent_while_a_run_is_active_is_not_seen_by_it(user: Caller) -> None:
    """It is accepted, stands after the run's answer, and is for the next run."""
    one = script({"tool": "ask_user", "args": {"question": "?"}}, {"say": "The answer."})
    thread_id = user.thread(one)
    first = user.start(thread_id)
    user.until(first, "status", "waiting_for_input")
    user.say(thread_id, "later message")
    assert 200 == user.answer(first, "so be it").status_code
    ended = user.ended(first)
    second = user.ended(user.start(thread_id))

    assert ended["usage"]["input_tokens"] == words(PROMPT, one) + words(PROMPT, one, "so be it")
    assert [one, "The answer.", "later message", "You said: later message"] == [
        content for _, content, _ in user.messages(thread_id)
    ]
    assert second["usage"]["input_tokens"] == words(
        PROMPT, one, "so be it", "The answer.", "later message"
    )


def test_an_answer_of_tools_alone_leaves_the_last_word(user: Caller) -> None:
    """A script that ends on a tool ends the run with `done`; each turn has its event."""
    run_id = user.run(CALCULATE, CALCULATE)
    events = user.events(run_id)

    assert ["message.completed", "tool.call", "run.cost", "tool.result"] * 2 == types(events)[1:9]
    contents = [e["data"]["content"] for e in events if e["type"] == "message.completed"]
    assert ["", "", "done"] == contents
    last = user.get(f"/v1/threads/{user.get_run(run_id)['thread_id']}/messages")[-1]
    assert ("done", events[-1]["data"]["message_id"]) == (last["content"], last["id"])


def test_usage_and_cost_are_the_sums_of_all_turns(user: Caller) -> None:
    """After each model call `run.cost` has the sums so far; the last one is the run's."""
    run_id = user.run(
        {"usage": {"input_tokens": 100, "output_tokens": 10, "cache_read_tokens": 50}},
        CALCULATE,
        {"usage": {"input_tokens": 200, "output_tokens": 20, "cache_read_tokens": 0}},
        {"say": "ok"},
    )
    events = user.events(run_id)
    costs = [event["data"] for event in events if event["type"] == "run.cost"]
    total = {
        "input_tokens": 300,
        "output_tokens": 30,
        "cache_read_tokens": 50,
        "source": "reported",
    }

    # 50 fresh, 50 cached, 10 out; then 200 fresh, 20 out.
    assert [0.000075, 0.000315] == [cost["cost_usd"] for cost in costs]
    assert total == costs[-1]["usage"] == user.get_run(run_id)["usage"]
    assert (total, 0.000315, "stop") == tuple(
        events[-1]["data"][name] for name in ("usage", "cost_usd", "stop_reason")
    )
    row = next(row for row in user.get("/v1/runs") if row["run_id"] == run_id)
    assert (50 / 300, 1) == (row["cache_hit_rate"], row["credits_used"])
