"""Usage, budgets and credits of real runs: what a worker reserves, spends, and is refused."""

import math
import signal
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.billing import credits
from tests.caller import Caller, answered, script
from tests.system import System

pytestmark = pytest.mark.processes

#: 1,000 tokens in and 1,000 out: 0.003 USD.
CALL = {"usage": {"input_tokens": 1000, "output_tokens": 1000}}
AGAIN = {"tool": "calculator", "args": {"expression": "1+1"}}
TWO_CALLS = (CALL, AGAIN, CALL, {"say": "done"})
COST = Decimal("0.006")
ONE_CALL = {"usage": {"input_tokens": 2000, "output_tokens": 1000}}
ONE_COST = 0.004


@pytest.fixture
def owner(system: System, within_a_month: None) -> Caller:
    """The owner of an org of the test's own."""
    return system.caller()


def cost_of(run: dict[str, Any]) -> Decimal:
    return Decimal(str(run["cost_usd"]))


def limit(owner: Caller, **limits: float | None) -> dict[str, Any]:
    return owner.put("/v1/budget", limits)


def one_run(owner: Caller) -> dict[str, Any]:
    return owner.ended(owner.run(ONE_CALL, {"say": "Hi"}, persona_id="plain"))


def spenders(owner: Caller, count: int) -> list[str]:
    threads = [owner.thread(script(*TWO_CALLS)) for _ in range(count)]
    paths = [f"/v1/threads/{thread}/runs" for thread in threads]
    started = [answered(partial(owner.http.post, path)) for path in paths]
    refused = [answer for answer in started if answer.status_code != 201]
    assert all(answer.json()["code"] == "budget.exhausted" for answer in refused)
    return [answer.json()["run_id"] for answer in started if answer.status_code == 201]


def spend_the_rest(owner: Caller) -> list[dict[str, Any]]:
    """Make runs one at a time, until one is refused a call or is not accepted; return them."""
    ended: list[dict[str, Any]] = []
    while not ended or ended[-1]["stop_reason"] == "stop":
        accepted = spenders(owner, 1)
        if not accepted:
            break
        ended.append(owner.ended(accepted[0]))
    return ended


def test_64_parallel_runs_never_spend_more_than_the_month_allows(owner: Caller) -> None:
    """Parallel runs spend what the month allows, and no more; the others end by name, and no
    reservation stays.
    """
    limit(owner, max_cost_usd_per_month=0.06)

    ended = [owner.ended(run_id, seconds=90) for run_id in spenders(owner, 64)]
    # Calls are refused while others have reserved more than they will use.
    ended += spend_the_rest(owner)

    spent = sum(map(cost_of, ended))
    assert {"completed"} == {run["status"] for run in ended}
    assert {"budget"} <= {run["stop_reason"] for run in ended} <= {"stop", "budget"}
    assert Decimal("0.06") - COST < spent <= Decimal("0.06")
    budget = owner.get("/v1/budget")
    assert (spent, 0) == (Decimal(str(budget["spent_usd"])), budget["held_usd"])
    limit(owner, max_cost_usd_per_month=float(spent))
    refused = owner.http.post(f"/v1/threads/{owner.thread('x')}/runs")
    assert (429, "budget.exhausted") == (refused.status_code, refused.json()["code"])


def test_a_killed_worker_neither_loses_nor_doubles_what_was_spent(
    system: System, owner: Caller
) -> None:
    """After a worker is killed its runs resume under the same budget, and no cost is lost or
    counted twice.
    """
    limit(owner, max_cost_usd_per_month=0.5)
    slow = (CALL, {"tool": "sleep", "args": {"seconds": 0.5}}, CALL, {"say": "done"})
    run_ids = [owner.run(*slow) for _ in range(20)]
    owner.seen(run_ids[-1], "tool.call")

    system.worker.stop(signal.SIGKILL)
    system.worker.start()
    ended = [owner.ended(run_id, seconds=60) for run_id in run_ids]

    assert {"completed"} == {run["status"] for run in ended}
    budget = owner.get("/v1/budget")
    total = sum(map(cost_of, ended))
    assert total >= 20 * COST
    assert (total, 0) == (Decimal(str(budget["spent_usd"])), budget["held_usd"])
    usage = owner.get("/v1/me/usage")
    assert total == Decimal(str(usage["cost_usd"]))


def test_a_run_has_a_limit_of_its_own(owner: Caller) -> None:
    """The persona's: a call that would be beyond it is not made, not even the last one."""
    persona = {"key": "thrifty", "tools": ["calculator"], "max_cost_usd": 0.004}
    persona_id = owner.made("/v1/personas", persona)["id"]
    strict = {**persona, "key": "strict", "on_limit": "fail"}
    strict_id = owner.made("/v1/personas", strict)["id"]

    run = owner.ended(owner.run(*TWO_CALLS, persona_id=persona_id))
    failed = owner.ended(owner.run(*TWO_CALLS, persona_id=strict_id))

    assert ("completed", "budget") == (run["status"], run["stop_reason"])
    said = "No answer: this run reached its limit of cost before the model had one."
    assert ("assistant", said, False) == owner.messages(run["thread_id"])[-1]
    assert ("failed", "budget.exhausted") == (failed["status"], failed["error"]["code"])
    assert [Decimal("0.003")] * 2 == [cost_of(run), cost_of(failed)]
    assert not failed["error"]["retryable"]


def test_an_end_user_learns_no_amounts_of_the_org(owner: Caller) -> None:
    """Neither the events of their runs nor the runs themselves say what the org lets them cost."""
    limit(owner, max_cost_usd_per_month=0.0045)
    strict = {"key": "strict", "tools": ["calculator"], "on_limit": "fail"}
    landing = {**strict, "key": "landing", "on_limit": "answer"}
    token = {"end_user_id": "ann", "scopes": ["data.runs.read", "data.runs.write"]}
    texts, errors = [], []
    for persona in (strict, landing):
        owner.made("/v1/personas", persona)
        whose = {"persona_id": persona["key"], "end_user_id": "ann"}
        run_id = owner.made("/v1/runs", {"message": script(*TWO_CALLS), **whose})["run_id"]
        ann = owner.at(token=owner.made("/v1/client-tokens", token)["token"])
        for event in ann.events(run_id):
            if event["type"] in ("run.failed", "run.limit_reached"):
                texts.append(event["data"].get("error", event["data"])["message"])
        errors.append((ann.get_run(run_id)["error"] or {}).get("message"))
        limit(owner, max_cost_usd_per_month=0.0075)

    shown = "The next model call may exceed the budget of the org in this month."
    assert [shown, shown] == texts
    assert [shown, None] == errors


def test_an_org_that_pays_in_advance_spends_what_it_has(system: System, owner: Caller) -> None:
    """Credits are spent at 1,000 per USD, each run rounded up, and the ledger's sum is the
    balance.
    """
    with system.connections.transaction() as tx:
        credits.grant(tx, UUID(owner.org_id), 20, note="test")

    ended = [owner.ended(run_id, seconds=90) for run_id in spenders(owner, 10)]
    # Runs that were refused a call while others had more reserved than they used leave enough for
    # another: it goes to runs one at a time, until one is refused a call.
    while ended[-1]["stop_reason"] != "budget" or owner.get("/v1/me/credits")["balance"] >= 3:
        ended.append(owner.ended(owner.run(*TWO_CALLS)))

    account = owner.get("/v1/me/credits")
    used = sum(entry["credits"] for entry in account["entries"] if entry["kind"] == "usage")
    assert used == sum(math.ceil(cost_of(run) * 1000) for run in ended)
    assert (20, 0) == (account["balance"] + used, account["held"])
    # Six calls of 3 credits each.
    assert 2 == account["balance"]


def test_what_a_run_has_used_is_counted_when_it_has_ended(owner: Caller) -> None:
    """The run, the report and the ledger show the same usage."""
    ended = one_run(owner)

    used = owner.get("/v1/me/usage")
    [entry] = owner.get("/v1/me/credits")["entries"]
    assert (ONE_COST, 1, ONE_COST, 4) == (
        ended["cost_usd"],
        used["runs"],
        used["cost_usd"],
        used["credits"],
    )
    assert ("receivable", 4, ended["run_id"]) == (
        entry["debit_account"],
        entry["credits"],
        entry["run_id"],
    )
    assert ["scripted-1"] == [row["model"] for row in owner.get("/v1/me/usage/by-model")]


def test_a_run_within_its_budget_is_spent_from_it(owner: Caller) -> None:
    """A finished run's cost counts for its budget, and its reservation is gone."""
    limit(owner, max_cost_usd_per_month=1)

    assert "completed" == one_run(owner)["status"]

    budget = owner.get("/v1/budget")
    assert (ONE_COST, 0) == (budget["spent_usd"], budget["held_usd"])


@pytest.mark.parametrize("limits", [{"max_cost_usd": 1e-8}, {"max_cost_usd_per_month": 1e-8}])
def test_a_call_that_does_not_fit_is_not_made(owner: Caller, limits: dict[str, float]) -> None:
    """The run ends, costs nothing and leaves nothing held; without the limit it goes."""
    limit(owner, **limits)

    refused = one_run(owner)
    limit(owner)

    assert ("completed", "budget", 0) == (
        refused["status"],
        refused["stop_reason"],
        refused["cost_usd"],
    )
    budget = owner.get("/v1/budget")
    assert (0, 0) == (budget["spent_usd"], budget["held_usd"])
    assert "completed" == one_run(owner)["status"]
