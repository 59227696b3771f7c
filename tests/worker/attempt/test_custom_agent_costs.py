"""The costs of model calls that a custom agent makes itself."""

import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared import metrics
from arkloop.shared.billing import budget_limits, credits
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.billing import run_usage
from arkloop.worker.attempt import custom_agent, execution
from arkloop.worker.contract.outcomes import CancelRequested, ShuttingDown, StopRun
from arkloop.worker.process.process import WorkerProcess
from tests.shared.catalog.org_catalog import add_model, publish
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.attempt.agent_runs import created, data, process

__all__ = ["process"]  # a fixture


@pytest.mark.parametrize(
    ("reason", "state"),
    [(CancelRequested(), RunState.CANCELLED), (ShuttingDown(), RunState.QUEUED)],
)
def test_a_call_that_was_in_progress_when_the_run_had_to_stop_is_paid_for(
    stored: StoredRuns,
    process: WorkerProcess,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reason: StopRun,
    state: str,
) -> None:
    """The vendor bills it, and the agent learns what it cost only when it returns."""
    monkeypatch.setattr(custom_agent, "STOP_SECONDS", 60.0)
    stop_reason_of, is_stopping = custom_agent.stop_reason_of, threading.Event()

    def noting(of: BaseException) -> Any:
        is_stopping.set()
        return stop_reason_of(of)

    monkeypatch.setattr(custom_agent, "stop_reason_of", noting)
    in_progress = {"meet": str(tmp_path), "count": 2}
    cost = {"usd": 0.1 + 0.2, "input_tokens": 3}
    run_id = created(stored, {"text": "Well, "}, in_progress, cost, {"text": "no."})
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lambda: any(tmp_path.iterdir()))
    process.active_runs()[run_id].set(reason)
    assert is_stopping.wait(60)
    (tmp_path / "returns").touch()
    attempt.join(60)

    row = stored.row(run_id)
    assert (state, Decimal("0.3"), 3) == (row["state"], row["cost_usd"], row["input_tokens"])
    assert Decimal("0.3") == Decimal(str(data(stored, run_id, "run.cost")[-1]["cost_usd"]))


def called(model: str | None, usd: float) -> dict[str, Any]:
    return {"usd": usd, "model": model, "input_tokens": 1}


@pytest.mark.parametrize("is_of_org", [True, False])
def test_each_call_counts_for_the_model_that_was_called(
    stored: StoredRuns, process: WorkerProcess, is_of_org: bool
) -> None:
    """Reports name it; the run's route says who pays, and it is the org if the model is its own."""
    with stored.connections.transaction() as tx:
        credits.open_prepaid(tx, stored.actor.org_id, 10_000_000)
    calls = [called("gpt-4o", 0.5), called(None, 0.25), called("gpt-4o", 0.125)]
    run_id = created(stored, *calls, {"text": "Done."})
    if is_of_org:
        stored.set(run_id, route_id=add_model(stored), model="m")
    row = stored.row(run_id)
    own = row["model"]

    execution.execute(process, run_id)

    [*_, last] = data(stored, run_id, "run.cost")
    assert [(row["route_id"], "gpt-4o", 0.625), (row["route_id"], own, 0.25)] == [
        (part["route_id"], part["model"], part["cost_usd"]) for part in last["routes"]
    ]
    with stored.connections.reading() as sql:
        rows = sql.execute(select(run_usage).where(run_usage.c.run_id == run_id)).mappings().all()
        left = credits.balance(sql, stored.actor.org_id).balance
    assert (10_000_000 - (0 if is_of_org else credits.credits_of(Decimal("0.875")))) == left
    assert {"gpt-4o": Decimal("0.625"), own: Decimal("0.25")} == {
        row["model"]: row["cost_usd"] for row in rows
    }


@pytest.fixture
def counted() -> Iterator[dict[tuple[str, ...], list[float]]]:
    """The cells of the metrics of model costs and tokens, by their labels."""
    cells: dict[tuple[str, ...], list[float]] = {}

    def room(_name: str, labels: tuple[str, ...], count: int) -> tuple[list[float], int]:
        return cells.setdefault(labels, [0.0] * count), 0

    for metric in (metrics.MODEL_COST, metrics.MODEL_TOKENS):
        metric.enable(room, threading.Lock())
    yield cells
    for metric in (metrics.MODEL_COST, metrics.MODEL_TOKENS):
        metric.disable()


@pytest.mark.parametrize("whose", ["server", "org", "gone"])
def test_metrics_contain_what_an_agent_reports(
    stored: StoredRuns,
    process: WorkerProcess,
    counted: dict[tuple[str, ...], list[float]],
    whose: str,
) -> None:
    """Reported costs and tokens count under the run's route, as those of the service's own calls
    do: no label names an org.
    """
    run_id = created(stored, called("gpt-4o", 0.5), called("gpt-4o", 0.25), {"text": "Done."})
    if whose != "server":
        stored.set(run_id, route_id=add_model(stored) if whose == "org" else str(new_id()))
    route = stored.row(run_id)["route_id"]
    label = {"server": route, "org": "own:openai", "gone": "other"}[whose]

    execution.execute(process, run_id)

    assert [0.75] == counted[label,]
    assert [2] == counted[label, "input_tokens"]
    assert {label} == {labels[0] for labels in counted}


def test_a_run_has_a_bounded_number_of_models(stored: StoredRuns, process: WorkerProcess) -> None:
    """Calls of others count as those of the first, names that no row can hold without the rest."""
    names = ["first\0" + 300 * "x", *map(str, range(20))]
    run_id = created(stored, *(called(name, 0.5) for name in names), {"text": "Done."})

    execution.execute(process, run_id)

    [*_, last] = data(stored, run_id, "run.cost")
    first, *others = [(part["model"], part["cost_usd"]) for part in last["routes"]]
    assert ("first\ufffd" + 194 * "x", 3.0) == first
    assert [(str(number), 0.5) for number in range(15)] == others
    assert RunState.COMPLETED == stored.row(run_id)["state"]


UNPRICED = {"tokens": 3, "model": "unheard-of"}


def test_a_call_of_a_model_without_a_name_has_the_price_of_the_runs_model(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """An empty name, as that of a variable that is not set, is none, also under a budget."""
    run_id = created(stored, {"tokens": 3, "model": ""}, {"text": "Done."}, max_cost_usd=1)

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert (RunState.COMPLETED, None, Decimal("0.000003")) == (
        *(row["state"], row["error_code"], row["cost_usd"]),
    )


@pytest.mark.parametrize("is_of_org", [True, False])
def test_a_call_without_a_known_price_counts_as_nothing_unless_credits_pay_it(
    stored: StoredRuns, process: WorkerProcess, is_of_org: bool
) -> None:
    """They pay what agents of the service use on routes of the server, and not on the org's."""
    with stored.connections.transaction() as tx:
        credits.open_prepaid(tx, stored.actor.org_id, 10)
    run_id = created(stored, UNPRICED, {"text": "Done."})
    if is_of_org:
        stored.set(run_id, route_id=add_model(stored), model="m")

    execution.execute(process, run_id)

    row = stored.row(run_id)
    if is_of_org:
        assert (RunState.COMPLETED, Decimal(0), 3) == (
            *(row["state"], row["cost_usd"], row["input_tokens"]),
        )
    else:
        assert (RunState.FAILED, "budget.exhausted") == (row["state"], row["error_code"])


@pytest.mark.parametrize("limit", [None, Decimal(1)])
def test_a_call_without_a_known_price_counts_as_nothing_in_a_sub_run_without_a_budget(
    stored: StoredRuns, process: WorkerProcess, limit: Decimal | None
) -> None:
    """It fails the sub-run if the run above has a budget, which covers both."""
    child = publish(stored, "child", agent="script")
    steps = json.dumps([UNPRICED, {"text": "Done."}])
    task = {"persona": child, "task": steps, "tool_call_id": "a"}
    of_run = {} if limit is None else {"max_cost_usd": float(limit)}
    run_id = created(stored, {"delegate": [task]}, delegates=[child], **of_run)
    execution.execute(process, run_id)
    [delegated] = data(stored, run_id, "run.delegated")

    execution.execute(process, UUID(delegated["run_id"]))

    row = stored.row(UUID(delegated["run_id"]))
    ended = (row["state"], row["error_code"])
    if limit is None:
        assert (RunState.COMPLETED, None) == ended
    else:
        assert (RunState.FAILED, "budget.exhausted") == ended


def test_a_cost_waits_for_nothing_that_others_have_reserved(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """They may use less: the run continues, and its cost counts."""
    with stored.connections.transaction() as tx:
        month = {"max_cost_usd": None, "max_cost_usd_per_month": Decimal(1)}
        budget_limits.set_(tx, stored.actor.org_id, "org", **month)
    other = created(stored, {"reserve": 0.9}, {"text": "x"}, {"wait": 60})
    attempt = threading.Thread(target=execution.execute, args=(process, other))
    attempt.start()
    eventually(lambda: "message.delta" in stored.types(other))
    run_id = created(stored, {"usd": 0.25}, {"text": "Done."})

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert (RunState.COMPLETED, "stop", Decimal("0.25")) == (
        *(row["state"], row["stop_reason"], row["cost_usd"]),
    )
    assert "run.throttled" not in stored.types(run_id)
    process.active_runs()[other].set(ShuttingDown())
    attempt.join(20)
