"""Budgets and usage of real runs: what a worker reserves, spends, and is refused."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from tests.caller import Caller
from tests.system import System

USAGE = {"usage": {"input_tokens": 2000, "output_tokens": 1000}}
COST = 0.004  # USD, at the scripted model's prices
#: More than any single call of these tests can cost, and less than two of them.
ROOM_FOR_ONE = 0.013


@pytest.fixture
def owner(system: System) -> Caller:
    """Of an org of the test's own."""
    return system.caller()


def limit(user: Caller, **limits: float | None) -> None:
    answer = user.http.put("/v1/budget", json=limits)
    assert 200 == answer.status_code, answer.text


def run(user: Caller, **choice: str) -> dict[str, Any]:
    return user.ended(user.run(USAGE, {"say": "Hi"}, persona_id="plain", **choice))


def test_what_a_run_has_used_is_counted_when_it_has_ended(owner: Caller) -> None:
    """In the run, in the report and in the ledger the same."""
    ended = run(owner)

    used = owner.get("/v1/me/usage")
    [entry] = owner.get("/v1/me/credits")["entries"]
    assert (COST, 1, COST, 4) == (
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
    """And holds nothing any more when it has ended."""
    limit(owner, max_cost_usd_per_month=1)

    assert "completed" == run(owner)["status"]

    budget = owner.get("/v1/budget")
    assert (COST, 0) == (budget["spent_usd"], budget["held_usd"])


@pytest.mark.parametrize("limits", [{"max_cost_usd": 1e-8}, {"max_cost_usd_per_month": 1e-8}])
def test_a_call_that_does_not_fit_is_not_made(owner: Caller, limits: dict[str, float]) -> None:
    """The run fails, costs nothing and leaves nothing held; without the limit it goes."""
    limit(owner, **limits)

    refused = run(owner)
    limit(owner)

    assert ("failed", "budget.exhausted", 0) == (
        refused["status"],
        refused["error"]["code"],
        refused["cost_usd"],
    )
    budget = owner.get("/v1/budget")
    assert (0, 0) == (budget["spent_usd"], budget["held_usd"])
    assert "completed" == run(owner)["status"]


def test_runs_at_once_never_overspend(owner: Caller) -> None:
    """Some are made, some are refused; what was spent is what those have cost that were made."""
    limit(owner, max_cost_usd_per_month=ROOM_FOR_ONE)
    ids = []
    for _ in range(8):
        answer = owner.http.post(
            f"/v1/threads/{owner.thread('Hi')}/runs", json={"persona_id": "plain"}
        )
        ids += [answer.json()["run_id"]] if answer.status_code == 201 else []
    with ThreadPoolExecutor(8) as threads:
        ended = list(threads.map(lambda run_id: owner.ended(run_id, seconds=90), ids))

    codes = {run["status"] if run["error"] is None else run["error"]["code"] for run in ended}
    assert codes <= {"completed", "budget.exhausted"}
    assert "completed" in codes
    budget = owner.get("/v1/budget")
    total = sum(Decimal(str(run["cost_usd"])) for run in ended)
    assert float(total) == budget["spent_usd"] <= ROOM_FOR_ONE
    assert 0 == budget["held_usd"]
