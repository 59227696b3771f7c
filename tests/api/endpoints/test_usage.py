"""`/v1/me/usage` and `/v1/me/credits`."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert

from arkloop.shared.billing import credits
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import run_usage
from tests.clients import Register, User, details_of, error_of
from tests.stored_runs import StoredRuns

NOTHING = {
    "runs": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "reasoning_tokens": 0,
    "cost_usd": 0,
}


def used(
    connections: Connections, user: User, ended_at: datetime, *costs: str, **columns: Any
) -> None:
    """Store a run that ended then, with a route of its own for each cost."""
    run_id = new_id()
    with connections.transaction() as tx:
        for number, cost in enumerate(costs):
            values = {
                "run_id": run_id,
                "route_id": f"route-{number}",
                "org_id": user.org_id,
                "user_id": user.id,
                "persona_key": "assistant",
                "model": f"model-{number}",
                "input_tokens": 100,
                "output_tokens": 10,
                "cache_read_tokens": 5,
                "cache_write_tokens": 4,
                "reasoning_tokens": 3,
                "usage_source": "reported",
                "cost_usd": Decimal(cost),
                "ended_at": ended_at,
                "month": ended_at.date().replace(day=1),
            }
            tx.sql.execute(insert(run_usage).values({**values, **columns}))


def at(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


MARCH = "from=2026-03-01&to=2026-04-01"


def usage(user: User, query: str = MARCH) -> dict[str, Any]:
    response = user.get(f"/v1/me/usage?{query}")
    assert 200 == response.status_code, response.text
    return dict(response.json or {})


def test_without_a_run_nothing_is_used(alice: User) -> None:
    """Zeros, not nulls; the period is this month until tonight."""
    today = datetime.now(UTC).date()
    body = alice.get("/v1/me/usage").json or {}
    if today != datetime.now(UTC).date():
        return test_without_a_run_nothing_is_used(alice)  # it was midnight

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


def test_a_period_has_its_beginning_and_not_its_end(alice: User, connections: Connections) -> None:
    """Dates are their first moments in UTC; an offset is understood."""
    for day in (1, 2, 3):
        used(connections, alice, at(day, 0), "1")

    queries = {
        "from=2026-03-01&to=2026-03-03": 2,
        "from=2026-03-01T00:00:00.001Z&to=2026-03-03": 1,
        "from=2026-03-01T01:00:00%2B01:00&to=2026-03-03T00:00:00.001Z": 3,
        "from=2026-03-01T00:00:00-01:00&to=2026-03-03": 1,
    }
    assert queries == {query: usage(alice, query)["runs"] for query in queries}


def test_every_day_is_there(alice: User, connections: Connections) -> None:
    """Each UTC day is reported, also one on which no run ended."""
    used(connections, alice, at(1, 0), "1")
    used(connections, alice, at(3, 23), "0.5", "0.25")
    used(connections, alice, at(3, 23), "0.0001")

    rows = alice.get("/v1/me/usage/daily?from=2026-03-01&to=2026-03-05").json or []

    assert [
        ("2026-03-01", 1, 1, 1000),
        ("2026-03-02", 0, 0, 0),
        ("2026-03-03", 2, 0.7501, 751),
        ("2026-03-04", 0, 0, 0),
    ] == [(row["date"], row["runs"], row["cost_usd"], row["credits"]) for row in rows]
    assert {"date": "2026-03-02", **NOTHING, "credits": 0} == rows[1]


def test_a_part_of_a_day_is_a_day_of_its_own(alice: User, connections: Connections) -> None:
    """The part of a day at the edge of a period is reported with the runs that ended in it."""
    used(connections, alice, at(1, 6), "1")
    used(connections, alice, at(1, 18), "1")

    rows = alice.get("/v1/me/usage/daily?from=2026-03-01T12:00:00Z&to=2026-03-02T00:00:01Z").json

    assert [("2026-03-01", 1), ("2026-03-02", 0)] == [(r["date"], r["runs"]) for r in rows or []]


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


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=yesterday", "from"),
        ("from=2026-03-01T00:00:00", "from"),
        ("to=2026-02-30", "to"),
        ("to=9999-12-31T23:59:59-23:00", "to"),
        ("from=2026-03-02&to=2026-03-02", "to"),
        ("api_key_id=1", "api_key_id"),
        ("persona=", "persona"),
        ("persona=assistant@1", "persona"),
        ("day=1", "day"),
    ],
)
@pytest.mark.parametrize("path", ["", "/daily", "/by-model"])
def test_bad_periods_are_refused(alice: User, path: str, query: str, field: str) -> None:
    """A bad period gets 422 with the parameter's name."""
    assert [field] == list(details_of(alice.get(f"/v1/me/usage{path}?{query}")))


MALFORMED = "must be an RFC 3339 date or date-time"
YEARS = "must be between 2000-01-01 and 9998-12-31 (UTC)"


@pytest.mark.parametrize(
    ("moment", "problem"),
    [
        ("2026-W01-1", MALFORMED),
        ("20260301", MALFORMED),
        ("2026-03", MALFORMED),
        ("2026-3-1", MALFORMED),
        ("2026-02-30", MALFORMED),
        ("٢٠٢٦-03-01", MALFORMED),
        ("2026-03-01 ", MALFORMED),
        ("20260301T101112Z", MALFORMED),
        ("2026-03-01T10Z", MALFORMED),
        ("2026-03-01T10:11Z", MALFORMED),
        ("2026-03-01T101112Z", MALFORMED),
        ("2026-03-01 10:11:12Z", MALFORMED),
        ("2026-03-01T24:00:00Z", MALFORMED),
        ("2026-03-01T10:11:12,5Z", MALFORMED),
        ("2026-03-01T10:11:12%2B0100", MALFORMED),
        ("2026-03-01T10:11:12%2B01", MALFORMED),
        ("2026-03-01T10:11:12%2B01:60", MALFORMED),
        ("2026-03-01T10:11:12+01:00", MALFORMED),  # a plus that was not escaped is a space
        ("2026-03-01T10:11:12", "must include a UTC offset, such as Z"),
        ("0001-01-01", YEARS),
        ("1999-12-31", YEARS),
        ("9999-12-31", YEARS),
        ("1999-12-31T23:59:59Z", YEARS),
        ("9999-12-31T23:59:59Z", YEARS),
        ("2000-01-01T00:00:00%2B14:00", YEARS),
        ("9998-12-31T23:59:59-01:00", YEARS),
        ("0001-01-01T00:00:00%2B00:01", YEARS),
        ("9999-12-31T23:59:59-00:01", YEARS),
    ],
)
@pytest.mark.parametrize("field", ["from", "to"])
def test_other_forms_of_a_moment_are_refused(
    alice: User, field: str, moment: str, problem: str
) -> None:
    """Each with what is wrong."""
    assert {field: [problem]} == details_of(alice.get(f"/v1/me/usage?{field}={moment}"))


@pytest.mark.parametrize(
    ("moment", "since"),
    [
        ("2000-01-01", "2000-01-01T00:00:00.000Z"),
        ("1999-12-31T23:59:59-00:01", "2000-01-01T00:00:59.000Z"),
        ("2024-02-29", "2024-02-29T00:00:00.000Z"),
        ("2024-02-29T23:59:59Z", "2024-02-29T23:59:59.000Z"),
        ("2024-02-29t23:59:59z", "2024-02-29T23:59:59.000Z"),
        ("2024-02-29T23:59:59.5Z", "2024-02-29T23:59:59.500Z"),
        ("2024-02-29T23:59:59.1234567891Z", "2024-02-29T23:59:59.123Z"),
        ("2024-03-01T00:30:00%2B01:30", "2024-02-29T23:00:00.000Z"),
        ("2024-02-29T00:30:00-23:59", "2024-03-01T00:29:00.000Z"),
    ],
)
def test_every_form_of_rfc_3339_is_read(alice: User, moment: str, since: str) -> None:
    """Every form of RFC 3339 is accepted and repeated in UTC."""
    assert since == usage(alice, f"from={moment}")["from"]


def test_days_are_at_most_those_of_a_year(alice: User) -> None:
    """366 are listed, of 367 none."""
    first = date(2025, 1, 1)
    path = f"/v1/me/usage/daily?from={first}&to="

    assert 366 == len(alice.get(f"{path}{first + timedelta(days=366)}").json or [])
    assert ["from"] == list(details_of(alice.get(f"{path}{first + timedelta(days=367)}")))


# ---- credits -------------------------------------------------------------------------


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
