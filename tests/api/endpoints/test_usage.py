"""`/v1/me/usage` and `/v1/me/credits`."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.billing import credits
from arkloop.shared.ids import new_id
from arkloop.shared.runs import thread_changes
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.used_models import MARCH, NOTHING, at, usage, used
from tests.clients import Register, User, details_of, error_of
from tests.shared.runs.delegated_runs import delegated
from tests.stored_runs import StoredRuns


def test_without_a_run_nothing_is_used(alice: User) -> None:
    """Zeros, not nulls; the period is this month until tonight."""
    today = datetime.now(UTC).date()
    body = alice.get("/v1/me/usage").json or {}

    until, this_month = body.pop("to"), body.pop("this_month")
    assert f"{today + timedelta(days=1)}T00:00:00.000Z" == until
    assert {"from": f"{today:%Y-%m}-01T00:00:00.000Z", **NOTHING, "credits": 0} == body
    assert {"month": f"{today:%Y-%m}", **NOTHING, "credits": 0} == this_month


def test_what_a_run_has_used_is_there_when_it_has_ended(
    alice: User, connections: Connections
) -> None:
    """Tokens, cost, and each started credit."""
    stored = StoredRuns.of(connections, alice)
    stored.finish(stored.claimed())

    body = alice.get("/v1/me/usage").json or {}

    assert (1, 10, 5, 2, 0.5, 500) == tuple(
        body[name]
        for name in (
            "runs",
            "input_tokens",
            "output_tokens",
            "cache_read_tokens",
            "cost_usd",
            "credits",
        )
    )
    assert body["runs"] == body["this_month"]["runs"]


def test_sums_are_right_to_the_last_digit(alice: User, connections: Connections) -> None:
    """Binary fractions would add up to something else; credits are counted by the run."""
    for day in range(1, 11):
        used(connections, alice, at(day), "0.10000001", "0.00000001")

    body = usage(alice)

    assert (10, 2000, 30 * 2, 1.0000002, 10 * 101) == (
        body["runs"],
        body["input_tokens"],
        body["reasoning_tokens"],
        body["cost_usd"],
        body["credits"],
    )


def test_models_are_listed_by_what_they_cost(alice: User, connections: Connections) -> None:
    """A run that called two of them is one of each."""
    used(connections, alice, at(1), "1", "2")
    used(connections, alice, at(2), "0.5")

    rows = alice.get(f"/v1/me/usage/by-model?{MARCH}").json or []

    assert [("model-1", 1, 2, 100), ("model-0", 2, 1.5, 200)] == [
        (row["model"], row["runs"], row["cost_usd"], row["input_tokens"]) for row in rows
    ]


@pytest.mark.parametrize("path", ["", "/daily", "/by-model"])
def test_usage_of_one_persona_or_key(alice: User, connections: Connections, path: str) -> None:
    """All three reports can be restricted to one persona or one key."""
    key = new_id()
    used(connections, alice, at(1), "1", persona_key="writer")
    used(connections, alice, at(1), "2", api_key_id=key)
    used(connections, alice, at(1), "4")

    def cost(query: str) -> float:
        answer = alice.get(f"/v1/me/usage{path}?from=2026-03-01&to=2026-03-02&{query}").json
        rows = answer if isinstance(answer, list) else [answer]
        return sum(row["cost_usd"] for row in rows)

    assert [1, 2, 0, 0] == [
        cost("persona=writer"),
        cost(f"api_key_id={key}"),
        cost(f"persona=writer&api_key_id={key}"),
        cost(f"api_key_id={new_id()}"),
    ]


def test_an_org_sees_its_own_usage_alone(
    alice: User, register: Register, connections: Connections
) -> None:
    """Members see that of all; a key needs the scope to read runs."""
    used(connections, alice, at(1), "1")
    member, stranger = register(org_of=alice, role="member"), register()
    narrow = alice.api_key("data.threads.read")
    paths = ["/v1/me/usage", "/v1/me/usage/daily", "/v1/me/usage/by-model", "/v1/me/credits"]

    assert [1, 0] == [usage(user)["runs"] for user in (member, stranger)]
    assert {(403, "auth.forbidden")} == {error_of(narrow.get(path)) for path in paths}


def test_an_org_that_got_no_credits_owes_what_it_uses(
    alice: User, connections: Connections
) -> None:
    """An org without credits of its own has no balance, and the ledger has each of its runs."""
    stored = StoredRuns.of(connections, alice)
    stored.finish(claim := stored.claimed())

    body = alice.get("/v1/me/credits").json or {}

    [entry] = body.pop("entries")
    assert {"balance": None, "held": 0, "is_prepaid": False} == body
    assert {
        "id": entry["id"],
        "kind": "usage",
        "run_id": str(claim.run_id),
        "debit_account": "receivable",
        "credit_account": "revenue",
        "credits": 500,
        "note": None,
        "created_at": entry["created_at"],
    } == entry


def test_the_ledger_is_read_page_by_page(alice: User, connections: Connections) -> None:
    """The newest first, each entry once; the balance stands on every page."""
    for amount in range(1, 6):
        with connections.transaction() as tx:
            credits.grant(tx, alice.org_id, amount, f"number {amount}")

    seen: list[dict[str, Any]] = []
    path = "/v1/me/credits?limit=2"
    while True:
        answer = alice.get(path)
        body = answer.json or {}
        assert (15, 0, True) == (body["balance"], body["held"], body["is_prepaid"])
        seen += body["entries"]
        if "X-Next-Cursor" not in answer.headers:
            break
        path = f"/v1/me/credits?limit=2&before={answer.headers['X-Next-Cursor']}"

    assert [(n, f"number {n}") for n in (5, 4, 3, 2, 1)] == [
        (entry["credits"], entry["note"]) for entry in seen
    ]
    assert {None} == {entry["run_id"] for entry in seen}
    assert 5 == len({UUID(entry["id"]) for entry in seen})


def test_usage_by_end_user_and_by_metadata(connections: Connections, alice: User) -> None:
    """Each value has its sums, the most expensive first; null has the rest, so all is counted."""
    used(connections, alice, at(1), "1", "2", end_user_id="a", metadata={"team": "red"})
    used(connections, alice, at(2), "4", end_user_id="b", metadata={"team": "red", "x": "y"})
    used(connections, alice, at(3), "0.5")

    def rows(report: str, query: str = "") -> list[tuple[Any, int, float]]:
        found = alice.get(f"/v1/me/usage/{report}{MARCH}{query}").json or []
        name = "value" if "metadata" in report else "end_user_id"
        return [(row[name], row["runs"], row["cost_usd"]) for row in found]

    by_user = [("b", 1, 4.0), ("a", 1, 3.0), (None, 1, 0.5)]
    assert by_user == rows("by-end-user?")
    assert by_user[:2] == rows("by-end-user?", "&limit=2")
    assert by_user[1:2] == rows("by-end-user?", "&end_user_id=a")
    assert [("red", 2, 7.0), (None, 1, 0.5)] == rows("by-metadata?key=team&")
    assert [("red", 1, 3.0)] == rows("by-metadata?key=team&", "&end_user_id=a")
    assert {"input_tokens": 200, "runs": 1, "cost_usd": 3.0} == {
        name: value
        for name, value in usage(alice, f"{MARCH}&end_user_id=a").items()
        if name in ("input_tokens", "runs", "cost_usd")
    }
    assert 2 == len(alice.get(f"/v1/me/usage/by-model?{MARCH}&end_user_id=a").json or [])
    daily = alice.get(f"/v1/me/usage/daily?{MARCH}&end_user_id=a").json or []
    assert [("2026-03-01", 1)] == [(d["date"], d["runs"]) for d in daily if d["runs"]]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("by-metadata", "key"),
        ("by-metadata?key=a+b", "key"),
        ("by-end-user?limit=0", "limit"),
        ("by-end-user?limit=1001", "limit"),
        ("by-end-user?end_user_id=", "end_user_id"),
        ("daily?end_user_id=%00", "end_user_id"),
    ],
)
def test_a_bad_report_by_client_data_is_refused(alice: User, path: str, field: str) -> None:
    """422 names the parameter."""
    assert [field] == list(details_of(alice.get(f"/v1/me/usage/{path}")))


def test_a_runs_usage_keeps_its_client_data(stored: StoredRuns, alice: User) -> None:
    """An ended run is counted for its end user, and by its metadata as it was changed later."""
    claim = stored.claimed()
    stored.set(claim.run_id, end_user_id="a", metadata={"team": "red"})
    stored.finish(claim)
    path = f"/v1/runs/{claim.run_id}"

    assert ["a"] == [r["end_user_id"] for r in alice.get("/v1/me/usage/by-end-user").json or []]
    report = "/v1/me/usage/by-metadata?key=team"
    assert ["red"] == [row["value"] for row in alice.get(report).json or []]
    assert 200 == alice.patch(path, {"metadata": {"team": "blue"}}).status_code
    assert ["blue"] == [row["value"] for row in alice.get(report).json or []]


def teams(user: User) -> list[Any]:
    """Return what the report has for the key `team`."""
    return [row["value"] for row in user.get("/v1/me/usage/by-metadata?key=team").json or []]


def set_private(stored: StoredRuns, thread_id: UUID, is_private: bool) -> None:
    with stored.connections.transaction() as tx:
        thread_changes.change(tx, stored.actor, thread_id, is_private=is_private)


def test_the_metadata_of_private_runs_is_in_no_report(stored: StoredRuns, alice: User) -> None:
    """Runs and sub-runs count by it only while their thread is shared."""
    claim = stored.claimed()
    thread_id = stored.row(claim.run_id)["thread_id"]
    below = stored.held(delegated(stored, claim).run_id)
    set_private(stored, thread_id, True)
    for one, team in ((below, "blue"), (claim, "red")):
        stored.set(one.run_id, metadata={"team": team})
        assert stored.finish(one)
    assert [None] == teams(alice)

    path = f"/v1/runs/{claim.run_id}"
    assert 200 == alice.patch(path, {"metadata": {"team": "green"}}).status_code
    assert [None] == teams(alice)
    set_private(stored, thread_id, False)
    assert {"blue", "green"} == {*teams(alice)}
    set_private(stored, thread_id, True)
    assert [None] == teams(alice)
    alice.delete(f"/v1/threads/{thread_id}")
    assert [None] == teams(alice)


@pytest.mark.parametrize(("is_private", "team"), [(False, "red"), (True, None)])
def test_a_run_that_ends_in_a_deleted_thread_counts_as_before(
    stored: StoredRuns, alice: User, is_private: bool, team: str | None
) -> None:
    """It counts by its metadata if the thread was shared when it was deleted."""
    claim = stored.claimed()
    stored.set(claim.run_id, metadata={"team": "red"})
    thread_id = stored.row(claim.run_id)["thread_id"]
    set_private(stored, thread_id, is_private)
    alice.delete(f"/v1/threads/{thread_id}")

    stored.finish(claim, RunState.CANCELLED)

    assert [team] == teams(alice)
