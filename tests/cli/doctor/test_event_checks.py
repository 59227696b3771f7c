"""Findings of `arkloop doctor` about the partitions of events."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.cli.doctor import event_checks, postgres_checks
from arkloop.cli.doctor.findings import Finding
from arkloop.shared.config import Settings
from arkloop.shared.events import partitions
from tests import walls

DAY = timedelta(days=1)


@pytest.fixture
def database(new_database: Callable[[], str], settings: Settings) -> Settings:
    """Settings with a database of the test's own, whose service owns no table."""
    return replace(settings, database_url=walls.put_up(new_database()))


def found(settings: Settings) -> dict[str, tuple[str, str]]:
    """Return level and text of the findings by their checks."""
    engine = postgres_checks.engine_of(settings.database_url)
    try:
        with postgres_checks.transaction(engine) as sql:
            findings: list[Finding] = [
                *postgres_checks.of_schema(settings, sql),
                *event_checks.of_events(settings, sql),
            ]
    finally:
        engine.dispose()
    return {one.check: (one.level, f"{one.text} → {one.advice}") for one in findings}


@contextmanager
def owner(settings: Settings) -> Iterator[Callable[..., Any]]:
    """Call it to execute a statement as the owner of the tables."""
    with walls.owner(settings.database_url) as engine, engine.begin() as sql:
        yield lambda statement, **values: sql.execute(text(statement), values)


def test_a_migrated_database_has_nothing_to_repair(database: Settings) -> None:
    """The next partition is there, nothing is outside of them, and the role may keep them."""
    of_events = {check: level for check, (level, _) in found(database).items() if "event" in check}

    assert {"event partitions": "ok"} == of_events


def test_functions_that_the_role_may_not_execute_fail(database: Settings) -> None:
    """Each is named, and what grants it."""
    with owner(database) as execute:
        execute(f"REVOKE EXECUTE ON FUNCTION drop_run_events_partition(text) FROM {walls.ROLE}")

    level, shown = found(database)["event functions"]

    assert "fail" == level
    assert f"{walls.ROLE} may not execute drop_run_events_partition:" in shown
    assert "add_run_events_partition" not in shown
    assert "arkloop migrate" in shown


def test_functions_of_another_owner_fail(database: Settings) -> None:
    """They work with the privileges of a role that may not change the tables."""
    with owner(database) as execute:
        execute("DROP ROLE IF EXISTS arkloop_stray")
        execute("CREATE ROLE arkloop_stray")
        execute("ALTER FUNCTION add_run_events_partition OWNER TO arkloop_stray")
    try:
        level, shown = found(database)["event functions"]
    finally:
        with owner(database) as execute:
            execute("ALTER FUNCTION add_run_events_partition OWNER TO postgres")
            execute("DROP ROLE arkloop_stray")

    assert "fail" == level
    assert "they belong to arkloop_stray, the tables to postgres" in shown
    assert "ALTER FUNCTION add_run_events_partition OWNER TO postgres" in shown


def test_functions_that_everybody_may_execute_fail(database: Settings) -> None:
    """They work with the privileges of the owner: any role could add and drop partitions."""
    with owner(database) as execute:
        execute("GRANT EXECUTE ON FUNCTION admit_run_events TO PUBLIC")

    level, shown = found(database)["event functions"]

    assert "fail" == level
    assert "every role of the database may execute admit_run_events, with" in shown
    assert "`arkloop migrate` with ARKLOOP_OWNER_DATABASE_URL" in shown


@pytest.mark.parametrize(("days", "level"), [(150, None), (400, "warn")])
def test_a_partition_that_ends_far_ahead_is_found(
    database: Settings, days: int, level: str | None
) -> None:
    """Its events can be dropped after that alone. `arkloop migrate` makes some that end a retention
    and a half from now.
    """
    with owner(database) as execute:
        keep_only(execute, (-15, 15), (15, days))

    finding = found(database).get("event partition ahead")

    assert level == (finding and finding[0])
    if finding is not None:
        assert f"ends {ago(-days):%Y-%m-%d}, further ahead than" in finding[1]


def test_a_schema_out_of_reach_is_named(database: Settings) -> None:
    """It is not taken for one that has to be migrated: the migrations have run."""
    with owner(database) as execute:
        execute(f"REVOKE USAGE ON SCHEMA public FROM PUBLIC, {walls.ROLE}")

    engine = postgres_checks.engine_of(database.database_url)
    with postgres_checks.transaction(engine) as sql:
        [finding] = postgres_checks.of_schema(database, sql)
    engine.dispose()

    assert ("privileges", "fail") == (finding.check, finding.level)
    assert "may not use the schema public" in finding.text


@pytest.mark.parametrize(("days_left", "level"), [(3, "warn"), (-3, "fail")])
def test_a_partition_that_was_not_made_is_found(
    database: Settings, days_left: int, level: str
) -> None:
    """It is a warning while the last one has days left, and a failure from its end on."""
    with owner(database) as execute:
        keep_only(execute, (days_left - 15, days_left))
        day = store(execute, -0.1)

    findings = found(database)

    assert level == findings["event partitions"][0]
    assert "tidying up failed" in findings["event partitions"][1]  # as the log has it
    assert ("events without partition" in findings) == (level == "fail")
    if level == "fail":
        level, shown = findings["events without partition"]
        assert "warn" == level
        assert f"1 events, of runs from {day}" in shown


@pytest.mark.parametrize(("begins", "level"), [(20, "ok"), (10, "warn"), (-3, "fail")])
def test_a_gap_between_partitions_is_found(database: Settings, begins: int, level: str) -> None:
    """The last one does not count, where those before it were left out: Postgres' clock was ahead
    when it was made. A gap is a fault when sweeps should have filled it.
    """
    with owner(database) as execute:
        keep_only(execute, (-15, begins), (30, 45))

    found_level, shown = found(database)["event partitions"]

    assert level == found_level
    if level != "ok":
        first = max(begins, 2)
        assert f"but none from {ago(-first):%Y-%m-%d} to " in shown


def test_a_large_default_partition_asks_for_migrate(database: Settings) -> None:
    """Sweeps make no partition beside it; and what a killed call has left is found."""
    with owner(database) as execute:
        keep_only(execute, (-30, -15))
        execute(
            "INSERT INTO run_events SELECT :id, n, 'message.delta', repeat('x', 1500)"
            " FROM generate_series(1, 24000) AS n",
            id=partitions.bound(ago(0.1)),
        )
        execute(
            "ALTER TABLE run_events_default ADD CONSTRAINT ck_run_events_20991231"
            " CHECK (seq > 0) NOT VALID"
        )

    findings = found(database)

    assert "Run `arkloop migrate`: it makes the next ones" in findings["event partitions"][1]
    level, shown = findings["event constraints"]
    assert "fail" == level
    assert "events of runs that are created from 2099-12-31 on are refused" in shown
    with owner(database) as execute:
        execute("SELECT pg_advisory_xact_lock(:key)", key=partitions._LOCK_KEY)
        assert "event constraints" not in found(database)  # `arkloop migrate` is at it


def test_an_id_that_has_no_time_is_found(database: Settings) -> None:
    """It was stored by hand, and is no UUIDv7: its time would be after the last that there is."""
    with owner(database) as execute:
        values = {"id": UUID(int=(1 << 128) - 1)}
        execute("INSERT INTO run_events VALUES (:id, 1, 'message.delta', '{}')", **values)

    level, shown = found(database)["events without partition"]

    assert "warn" == level
    assert "to 9999-12-31" in shown


def test_events_of_the_future_are_found(database: Settings) -> None:
    """The clock of some host was wrong; the service's role finds them though it owns no table."""
    with owner(database) as execute:
        store(execute, 400)

    level, shown = found(database)["events without partition"]

    assert "warn" == level
    assert "some lie in the future" in shown and "compare the clocks" in shown
    assert "need no restart" in shown


def test_old_events_without_a_partition_are_no_problem(database: Settings) -> None:
    """They stand between two partitions, and go with their runs."""
    with owner(database) as execute:
        keep_only(execute, (-30, -20), (-18, 20))
        day = store(execute, -19)

    findings = found(database)

    level, shown = findings["events without partition"]
    assert ("ok", "ok") == (level, findings["event partitions"][0])
    assert f"1 events, of runs from {day} to" in shown


def ago(days: float) -> datetime:
    return datetime.now(UTC) - days * DAY


def keep_only(execute: Callable[..., Any], *ranges: tuple[int, int]) -> None:
    """Let there be partitions for these days alone, counted from now on."""
    for name, *_ in execute("SELECT * FROM run_events_partitions() WHERE upper_id IS NOT NULL"):
        execute(f"DROP TABLE {name}")
    for lower, upper in ranges:
        bounds = {"lower": partitions.bound(ago(-lower)), "upper": partitions.bound(ago(-upper))}
        execute("SELECT add_run_events_partition(:lower, :upper)", **bounds)


def store(execute: Callable[..., Any], days: float) -> str:
    """Store an event of a run that is created `days` from now, a negative number for the past;
    returns its date.
    """
    at = ago(-days)
    run_id = partitions.bound(at)
    execute("INSERT INTO run_events VALUES (:id, 1, 'message.delta', '{}')", id=run_id)
    return f"{at:%Y-%m-%d}"
