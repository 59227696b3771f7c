"""`/v1/runs`: the filters of the list that are numbers, and the phase of its rows."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared import times
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User, details_of, error_of
from tests.stored_runs import StoredRuns, ago


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


def test_no_time_of_a_run_is_negative(stored: StoredRuns, alice: User) -> None:
    """The clock was set back after the run was created, and after it began to wait."""
    claim = stored.claimed()
    stored.park(claim, new_id(), expires_at="2090-01-01T00:00:00.000Z")
    stored.set(claim.run_id, created_at=ago(seconds=-3600), waiting_since=ago(seconds=-3600))
    waiting = alice.get(f"/v1/runs/{claim.run_id}").json or {}
    stored.cancel(claim.run_id)
    stored.set(claim.run_id, waiting_ms=-3_600_000)  # as earlier releases have stored it
    ended = alice.get(f"/v1/runs/{claim.run_id}").json or {}
    [listed] = alice.get("/v1/runs").json or []

    assert [(0, 0)] * 2 == [(run["queue_ms"], run["waiting_ms"]) for run in (waiting, ended)]
    assert 0 == listed["duration_ms"]


PHASES: dict[str, tuple[str, str]] = {
    "queued": ("running", "queued"),
    "pending": ("running", "queued"),
    "scheduled": ("running", "scheduled"),
    "executing": ("running", "executing"),
    "suspended": ("running", "waiting"),
    "waiting": ("waiting_for_input", "waiting"),
    "completed": ("completed", "finished"),
    "failed": ("failed", "finished"),
    "cancelled": ("cancelled", "finished"),
}


@pytest.mark.parametrize("state", RunState)
def test_lists_show_the_phase_that_the_run_itself_has(
    alice: User, make_run: Callable[..., UUID], state: RunState
) -> None:
    """Both lists agree with it, also for a run that is about to be cancelled."""
    thread_id = alice.thread()
    ended: dict[str, Any] = {"ended_at": times.now()} if state.is_terminal else {}
    asked = {**ended, "cancel_requested_at": times.now()}
    run_ids = [str(make_run(alice, thread_id, state, **ended))]
    run_ids.append(str(make_run(alice, alice.thread(), state, **asked)))
    status, phase = PHASES[state]
    later = "finished" if state.is_terminal else "cancelling"

    rows = {row["run_id"]: row for row in alice.get("/v1/runs").json or []}
    [in_thread] = alice.get(f"/v1/threads/{thread_id}/runs").json or []
    alone = [alice.get(f"/v1/runs/{run_id}").json or {} for run_id in run_ids]

    for shown in ([rows[run_id] for run_id in run_ids], alone):
        assert [(status, phase), (status, later)] == [
            (run["status"], run["phase"]) for run in shown
        ]
    assert (status, phase) == (in_thread["status"], in_thread["phase"])


@pytest.mark.parametrize("microseconds", [-5_000_000, 400, 999_499, 999_500, 999_999, 1_000_000])
def test_a_run_fits_the_duration_that_it_is_listed_with(
    stored: StoredRuns, alice: User, microseconds: int
) -> None:
    """A client that sends the `duration_ms` of a run as the least finds this run, and no shorter.

    The clock may have been set back while the run was executed.
    """
    began, running = times.now() - timedelta(hours=1), stored.create()
    ended_at = began + timedelta(microseconds=microseconds)
    run_id = stored.create(created_at=began)
    stored.set(run_id, ended_at=ended_at, state="completed")
    rows = {row["run_id"]: row for row in alice.get("/v1/runs").json or ()}
    shown = rows[str(run_id)]["duration_ms"]

    found = [alice.get(f"/v1/runs?min_duration_ms={shown + more}").json for more in (0, 1)]

    assert rows.keys() == {str(run_id), str(running)}
    assert [[rows[str(run_id)]], []] == found


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


def test_a_change_shows_the_run_to_those_who_may_read_it(alice: User, stored: StoredRuns) -> None:
    """A key that writes alone is refused, as it gets no run by GET either, and changes nothing."""
    path, body = f"/v1/runs/{stored.create()}", {"metadata": {"team": "red"}}
    writer = alice.api_key("data.runs.write")
    both = alice.api_key("data.runs.write", "data.runs.read")

    assert (403, "auth.forbidden") == error_of(writer.patch(path, body))
    assert {} == (alice.get(path).json or {})["metadata"]
    assert body["metadata"] == (both.patch(path, body).json or {})["metadata"]
