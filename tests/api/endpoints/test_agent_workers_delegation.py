"""Sub-runs and reservations of runs that agent workers execute."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from arkloop.shared.runs import agent_claims, whole_results
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.agent_worker import (
    Worker,
    call,
    cost,
    data_of,
    delta,
    result,
    turn,
    types_of,
)
from tests.clients import User, error_of
from tests.waiting import eventually

Hire = Callable[..., tuple[Worker, str]]


def task(call_id: str, text: str = "Do it.", persona: str = "helper") -> dict[str, str]:
    return {"tool_call_id": call_id, "persona": persona, "task": text}


@pytest.fixture
def workers(alice: User) -> Callable[[str], Worker]:
    """Call it for a worker of the agent `boss` or `helper`."""
    key = alice.api_key("agents.work")
    return lambda agent: Worker(key, agent)


@pytest.fixture
def hire(alice: User, workers: Callable[[str], Worker]) -> Hire:
    """Call it for a worker that has taken a run whose tasks go to runs of the agent `helper`."""

    def hire(**fields: Any) -> tuple[Worker, str]:
        helper = {"key": "helper", "agent": "helper"}
        boss = {"key": "boss", "agent": "boss", "delegates": ["helper"], **fields}
        for persona in (helper, boss):
            made = alice.post("/v1/personas", json=persona)
            assert 201 == made.status_code, made.text
        started = alice.post("/v1/runs", json={"persona_id": "boss", "message": "Hi"}).json
        assert started is not None
        worker = workers("boss")
        worker.take()
        return worker, str(started["run_id"])

    return hire


def shown(user: User, run_id: str) -> dict[str, Any]:
    response = user.get(f"/v1/runs/{run_id}")
    assert response.json is not None
    return dict(response.json)


def test_a_run_waits_for_its_sub_runs_and_is_polled_with_their_results(
    alice: User, hire: Hire, workers: Callable[[str], Worker], connections: Connections
) -> None:
    """Nobody holds it meanwhile; results are in call order, whatever ends first."""
    boss, run_id = hire()

    parked = boss.write("delegate", turn("Two things."), tasks=[task("a", "One"), task("b", "Two")])
    waiting = shown(alice, run_id)
    helper = workers("helper")
    polled = helper.poll(max_runs=2)
    for helper.run in reversed(polled):
        helper.seq = helper.run["next_seq"]
        assert [] == boss.poll()
        helper.write("complete", content=f"Did {helper.run['messages'][0]['content']}.")
    again = boss.take()
    boss.write("complete", content="Done.")

    assert ("running", "running", "waiting") == (
        *(parked.json["status"], waiting["status"], waiting["phase"]),
    )
    assert [
        *("run.started", "message.completed", "tool.call", "tool.call"),
        *("run.delegated", "run.delegated", "run.suspended", "run.resumed"),
        *("tool.result", "tool.result", "message.completed", "run.completed"),
    ] == types_of(connections, run_id)
    first, second = data_of(connections, run_id, "tool.call")
    assert ("delegate", {"persona": "helper", "task": "One"}) == (first["name"], first["arguments"])
    assert ["a", "b"] == [first["tool_call_id"], second["tool_call_id"]]
    started = data_of(connections, run_id, "run.delegated")
    assert [one["run_id"] for one in started] == [run["run_id"] for run in polled]
    assert [
        {"role": "tool", "content": "Did One.", "tool_call_id": "a", "name": "delegate"},
        {"role": "tool", "content": "Did Two.", "tool_call_id": "b", "name": "delegate"},
    ] == again["messages"][-2:]
    assert {run_id} == {shown(alice, run["run_id"])["parent_run_id"] for run in polled}


@pytest.mark.parametrize("most", [10_000_000, 150_000])
def test_a_long_result_is_polled_whole(
    hire: Hire, workers: Callable[[str], Worker], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The message has a part of it, as the event; of too much the newest is whole."""
    monkeypatch.setattr(whole_results, "MAX_CHARACTERS", most)
    boss, _ = hire()
    boss.write("delegate", turn(), tasks=[task("a"), task("short"), task("b")])
    helper = workers("helper")
    for text in ("a" * 100_000, "Short.", "b" * 100_001):
        helper.take()
        helper.write("complete", content=text)

    run = boss.take()

    first, short, last = run["messages"][-3:]
    assert "Short." == short["content"]
    assert all("truncated: the output had 10000" in one["content"] for one in (first, last))
    assert [("a", "a" * 100_000 if most > 200_001 else None), ("b", "b" * 100_001)] == [
        (one["tool_call_id"], one["output"]) for one in run["sub_run_results"]
    ]


def test_a_result_that_newer_turns_leave_no_room_for_is_polled_whole(
    hire: Hire, workers: Callable[[str], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the beginning of it alone, although its event has all of it."""
    monkeypatch.setattr(agent_claims, "MAX_TURN_BYTES", 3_000)
    boss, _ = hire()
    boss.write("delegate", turn(), tasks=[task("a")])
    helper = workers("helper")
    helper.take()
    helper.write("complete", content="a" * 2_000)
    first = boss.take()["sub_run_results"]
    boss.write("append", turn("b" * 2_000))
    boss.write("release")

    run = boss.take()

    assert [] == first
    assert 2_000 > len(run["messages"][-2]["content"])
    assert [{"tool_call_id": "a", "output": "a" * 2_000}] == run["sub_run_results"]


def test_a_repeated_request_starts_no_sub_run_twice(
    hire: Hire, workers: Callable[[str], Worker], connections: Connections
) -> None:
    """Its response is the same, and one that comes after the next claim is refused."""
    boss, run_id = hire()
    asked = {"seq": boss.seq, "events": [turn()], "tasks": [task("a")]}

    first, second = (boss.write("delegate", **asked).json for _ in range(2))
    helper = workers("helper")
    helper.take()
    helper.write("complete", content="Did it.")
    workers("boss").take()

    assert first == second
    assert (409, "agent_workers.outdated_fence") == error_of(boss.write("delegate", **asked))
    assert 1 == len(data_of(connections, run_id, "run.delegated"))
    assert 1 == len(data_of(connections, run_id, "tool.result"))


def test_a_persona_that_requires_variables_gets_no_task(alice: User, hire: Hire) -> None:
    """A task gives them no values: its model would read the placeholders instead."""
    prompt = {"system_prompt": "You see account {{account_id}} alone.", "overrides": ["variables"]}
    alice.post("/v1/personas", json={"key": "billing", **prompt})
    boss, run_id = hire(delegates=["helper", "billing"])

    boss.write("delegate", turn(), tasks=[task("a", persona="billing")])
    boss.take()

    refused = "Not executed: 'billing' requires variables, which a task cannot give."
    result = boss.run["messages"][-1]
    assert (refused, True) == (result["content"], result["is_error"])
    assert [] == alice.get(f"/v1/runs?parent_run_id={run_id}").json


def test_a_lost_successor_gets_the_results_once_more(
    hire: Hire, workers: Callable[[str], Worker], connections: Connections
) -> None:
    """They are written once, and each claim gets them in its messages."""
    boss, run_id = hire()
    boss.write("delegate", turn(), tasks=[task("a"), task("b", persona="nobody")])
    helper = workers("helper")
    helper.take()
    helper.write("fail", message="No.")

    boss.take()
    lost = boss.run["messages"]
    boss.write("release")
    boss.take()

    assert lost == boss.run["messages"]
    failed, refused = lost[-2:]
    assert ("The sub-run failed: agent.failed: No.", True) == (
        *(failed["content"], failed["is_error"]),
    )
    assert ("Not executed: 'nobody' is none of helper.", True) == (
        *(refused["content"], refused["is_error"]),
    )
    assert 2 == len(data_of(connections, run_id, "tool.result"))


def test_a_run_whose_tasks_are_all_refused_is_polled_at_once(hire: Hire) -> None:
    """It waits for nothing."""
    boss, _ = hire(delegates=["boss"], max_depth=1)
    boss.write("delegate", turn(), tasks=[task("a", persona="nobody")])

    assert boss.poll()[0]["messages"][-1]["is_error"]


def test_a_cancelled_run_starts_no_sub_runs(
    alice: User, hire: Hire, connections: Connections
) -> None:
    """Its request ends it instead."""
    boss, run_id = hire()
    alice.post(f"/v1/runs/{run_id}:cancel")

    ended = boss.write("delegate", turn(), tasks=[task("a")])

    assert "cancelled" == ended.json["status"]
    assert [] == data_of(connections, run_id, "run.delegated")


def test_a_cancel_of_a_run_that_waits_ends_its_sub_runs(
    alice: User, hire: Hire, workers: Callable[[str], Worker], connections: Connections
) -> None:
    """A sub-run that is executed learns of it, and one without a worker ends at once."""
    boss, run_id = hire()
    boss.write("delegate", turn(), tasks=[task("a"), task("b")])
    helper = workers("helper")
    helper.take()

    alice.post(f"/v1/runs/{run_id}:cancel")
    cancel_requested = helper.write("append", delta("x")).json["cancel_requested"]
    helper.write("release")

    below = [one["run_id"] for one in data_of(connections, run_id, "run.delegated")]
    assert cancel_requested
    assert 2 == len(below)
    eventually(lambda: {"cancelled"} == {shown(alice, one)["status"] for one in (run_id, *below)})


@pytest.mark.parametrize(
    ("events", "body", "field"),
    [
        ([], {"tasks": [task("a")]}, "events"),
        ([turn()], {"tasks": []}, "tasks"),
        ([turn()], {"tasks": [task("a"), task("a")]}, "tasks"),
        ([turn()], {"tasks": [task("a", "")]}, "tasks.0.task"),
        ([turn()], {"tasks": [task("")]}, "tasks.0.tool_call_id"),
        ([turn()], {}, "tasks"),
        ([turn(), call("a"), result("a", "1")], {"tasks": [task("a")]}, "tasks"),
        ([turn(), call("a", persona="helper", task="Do it.")], {"tasks": [task("a")]}, "tasks"),
        ([turn(), call("a", "delegate", persona="helper")], {"tasks": [task("a")]}, "tasks"),
    ],
)
def test_tasks_that_are_none_are_refused(
    events: list[dict[str, Any]], body: dict[str, Any], field: str, hire: Hire
) -> None:
    """Nothing is stored, and the run continues."""
    boss, _ = hire()

    refused = boss.write("delegate", *events, **body)

    assert (422, "validation.error") == error_of(refused)
    assert [field] == list(refused.json["details"])
    assert 200 == boss.write("complete", content="Never mind.").status_code


@pytest.mark.parametrize("key", ["helper", "nobody"])
def test_a_task_whose_call_is_on_record_is_given_out(
    alice: User, hire: Hire, workers: Callable[[str], Worker], connections: Connections, key: str
) -> None:
    """A person has approved it and edited another, and the agent has recorded the third."""
    boss, run_id = hire()
    calls = [call(id_, "delegate", persona=key, task="Do it.") for id_ in "abc"]
    boss.write("append", turn(), *calls[:2])
    edited = {"decision": "edit", "arguments": {"persona": key, "task": "Do more."}}
    for id_, reply in (("a", "yes"), ("b", json.dumps(edited))):
        boss.write("ask", approval_of=id_)
        alice.post(f"/v1/runs/{run_id}/input", json={"content": reply})
        boss.take()
    tasks = [task("a", persona=key), task("b", "Do more.", key), task("c", persona=key)]
    given = {"seq": boss.seq, "events": [calls[2]], "begun": ["a"], "tasks": tasks}

    first, again = (boss.write("delegate", **given) for _ in range(2))

    assert (200, first.json) == (first.status_code, again.json), first.text
    helper = workers("helper")
    for _ in data_of(connections, run_id, "run.delegated"):
        helper.take()
        helper.write("complete", content=helper.run["messages"][0]["content"])
    said = [one["content"] for one in boss.take()["messages"][-3:]]
    refused = ["Not executed: 'nobody' is none of helper."] * 3
    assert said == (["Do it.", "Do more.", "Do it."] if key == "helper" else refused)
    assert 3 == len(data_of(connections, run_id, "tool.call"))


def test_a_persona_without_delegates_gives_out_no_tasks(hire: Hire) -> None:
    """The request is refused."""
    boss, _ = hire(delegates=None)

    refused = boss.write("delegate", turn(), tasks=[task("a")])

    assert (422, ["the run's persona has no `delegates`"]) == (
        refused.status_code,
        refused.json["details"]["tasks"],
    )


def test_runs_of_a_tree_spend_from_one_limit(
    alice: User, hire: Hire, workers: Callable[[str], Worker]
) -> None:
    """What a sub-run has cost is not left for its parent, and the other way round."""
    boss, run_id = hire(max_cost_usd=1, on_limit="fail")
    boss.write("append", cost(0.25))
    boss.post("reserve", run_id=run_id, fence=boss.run["fence"], usd=0.75)
    boss.write("delegate", turn(), tasks=[task("a"), task("b")])
    helper = workers("helper")

    helper.take()
    held = {"run_id": helper.run["run_id"], "fence": helper.run["fence"]}
    over = helper.post("reserve", **held, usd=0.8).json
    helper.take()
    helper.write("append", cost(0.5))
    helper.write("complete", content="Did it.")
    boss.take()
    ended = boss.write("append", cost(0.3)).json

    assert ("completed", False) == (over["status"], over["is_reserved"])
    assert "failed" == ended["status"]
    run = shown(alice, run_id)
    assert ("budget.exhausted", 1.05) == (run["error"]["code"], run["tree_cost_usd"])


def test_a_reservation_keeps_money_from_other_runs_until_its_cost_is_reported(
    alice: User, hire: Hire, workers: Callable[[str], Worker]
) -> None:
    """A call that does not fit now is refused for now; one that never fits ends its run."""
    boss, run_id = hire(max_cost_usd_per_month=1, on_limit="fail")
    alice.post("/v1/runs", json={"persona_id": "boss", "message": "Hi"})
    other = workers("boss")
    other.take()

    def reserve(worker: Worker, usd: float, **more: Any) -> tuple[bool, str]:
        held = {"run_id": worker.run["run_id"], "fence": worker.run["fence"]}
        response = worker.post("reserve", **held, usd=usd, **more)
        assert 200 == response.status_code, response.text
        return response.json["is_reserved"], response.json["status"]

    assert (True, "running") == reserve(boss, 0.75)
    assert (True, "running") == reserve(boss, 0.75)  # its response was lost
    assert (False, "running") == reserve(other, 0.5)
    boss.write("append", delta("Well"), cost(0.25))
    assert (True, "running") == reserve(other, 0.5)
    assert (False, "running") == reserve(boss, 0.5)
    assert (False, "failed") == reserve(boss, 0.5, gives_up=True)
    assert (False, "failed") == reserve(boss, 0.5, gives_up=True)  # its response was lost
    assert (False, "failed") == reserve(other, 1.5)
    run = shown(alice, run_id)
    assert ("budget.exhausted", True) == (run["error"]["code"], run["error"]["retryable"])


def test_a_run_that_waits_for_a_person_leaves_nothing_reserved(
    hire: Hire, workers: Callable[[str], Worker], alice: User
) -> None:
    """Other runs of the same budget may use it meanwhile."""
    boss, run_id = hire(max_cost_usd_per_month=1)
    alice.post("/v1/runs", json={"persona_id": "boss", "message": "Hi"})
    other = workers("boss")
    other.take()
    held = {"run_id": run_id, "fence": boss.run["fence"]}
    other_run = {"run_id": other.run["run_id"], "fence": other.run["fence"]}

    boss.post("reserve", **held, usd=0.75)
    boss.write("ask", question="May I?")

    assert other.post("reserve", **other_run, usd=1).json["is_reserved"]


def test_a_cost_ends_no_run_for_what_others_have_reserved(
    hire: Hire, workers: Callable[[str], Worker], alice: User
) -> None:
    """They may use less; what they use exceeds the budget, or what the run itself uses."""
    boss, run_id = hire(max_cost_usd_per_month=1, on_limit="fail")
    alice.post("/v1/runs", json={"persona_id": "boss", "message": "Hi"})
    other = workers("boss")
    other.take()
    other_run = {"run_id": other.run["run_id"], "fence": other.run["fence"]}
    assert other.post("reserve", **other_run, usd=0.9).json["is_reserved"]

    written = boss.write("append", cost(0.25))
    other.write("append", cost(0.5))
    exceeded = boss.write("append", cost(0.5))

    assert ["running", "failed"] == [one.json["status"] for one in (written, exceeded)]
    assert 0.75 == shown(alice, run_id)["cost_usd"]
