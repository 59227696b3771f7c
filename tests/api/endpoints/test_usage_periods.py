"""Periods of usage reports."""

from datetime import date, timedelta

import pytest

from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.used_models import NOTHING, at, usage, used
from tests.clients import User, details_of


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
