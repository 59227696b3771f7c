"""`/v1/runs`: the filters of the list that are numbers."""

from datetime import timedelta
from decimal import Decimal

import pytest

from arkloop.shared import times
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User, details_of
from tests.stored_runs import StoredRuns


@pytest.fixture
def runs(connections: Connections, alice: User, register: Register) -> dict[str, str]:
    """The names of runs by their ids: of alice's org, and of another one."""
    made = StoredRuns.of(connections, alice)
    other = StoredRuns.of(connections, register())
    began = times.now() - timedelta(hours=1)

    def run(of: StoredRuns, cost: str, seconds: float | None) -> str:
        run_id = of.create(cost_usd=Decimal(cost), created_at=began)
        if seconds is not None:
            of.set(run_id, ended_at=began + timedelta(seconds=seconds), state="completed")
        return str(run_id)

    return {
        run(made, "0", 1.999): "cheap",
        run(made, "0.05", 2): "usual",
        run(made, "0.04999999", 60): "long",
        run(made, "7", None): "unended",
        run(other, "7", 60): "of others",
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("min_cost_usd=0", {"cheap", "usual", "long", "unended"}),
        ("min_cost_usd=0.05", {"usual", "unended"}),
        ("min_cost_usd=0.05000000&status=completed", {"usual"}),
        ("min_cost_usd=0.04999999", {"usual", "long", "unended"}),
        ("min_cost_usd=5e-02", {"usual", "unended"}),
        ("min_cost_usd=4.999999E-2", {"usual", "long", "unended"}),
        ("min_cost_usd=1000000", set()),
        ("min_duration_ms=0", {"cheap", "usual", "long"}),
        ("min_duration_ms=2000", {"usual", "long"}),
        ("min_duration_ms=2001&min_cost_usd=0.01", {"long"}),
        ("min_duration_ms=31622400000", set()),
    ],
)
def test_runs_are_filtered_by_least_cost_and_duration(
    alice: User, runs: dict[str, str], query: str, expected: set[str]
) -> None:
    """A run of exactly the amount is listed; one that has not ended has no duration."""
    rows = alice.get(f"/v1/runs?{query}").json
    assert rows is not None

    assert expected == {runs[row["run_id"]] for row in rows}


@pytest.mark.parametrize("name", ["min_cost_usd", "min_duration_ms"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        ".5",
        "1e-9",
        "1e",
        "1e+99",
        "NaN",
        "1,5",
        "٣",
        " 1",
        "0.123456789",
        "9999999999999",
    ],
)
def test_amounts_that_cannot_be_read_are_refused(alice: User, name: str, value: str) -> None:
    """422 that names the filter."""
    assert [name] == list(details_of(alice.get("/v1/runs", query_string={name: value})))
