"""Findings of `arkloop doctor` about what a restore has lost."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from arkloop.cli.doctor import restore_checks
from arkloop.cli.doctor.postgres_checks import engine_of, transaction
from arkloop.shared.config import Settings
from arkloop.shared.events import partitions
from tests import walls

_RUN = """
    INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id,
        model, position, state, queued_at, ended_at)
    VALUES (:id, :id, :id, :id, '', '', '', '', 1, :state, now(),
        CASE WHEN :state = 'completed' THEN now() END)
"""


def store_run(sql: Connection, days: float, state: str = "completed", *, events: int = 2) -> UUID:
    """Store a run that was created `days` ago, with this number of events, and no org."""
    run_id = partitions.bound(datetime.now(UTC) - timedelta(days=days))
    sql.execute(text("SET LOCAL session_replication_role = replica"))
    sql.execute(text(_RUN), {"id": run_id, "state": state})
    for seq in range(1, events + 1):
        event = "INSERT INTO run_events VALUES (:id, :seq, 'message.delta', '{}')"
        sql.execute(text(event), {"id": run_id, "seq": seq})
    return run_id


def lost(settings: Settings, url: str) -> list[tuple[str, str]]:
    """Return check and text of the findings that fail."""
    engine = engine_of(url)
    try:
        with transaction(engine) as sql:
            found = [
                *restore_checks.of_objects(settings, sql),
                *restore_checks.of_events(settings, sql),
            ]
    finally:
        engine.dispose()
    failed = [one for one in found if one.level == "fail"]
    of_lost = [one for one in failed if one.check != "disabled triggers"]
    assert all("If nothing was stored since" in one.advice for one in of_lost)
    return [(one.check, one.text) for one in failed]


def test_ended_runs_without_any_event_are_found(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """The events of one partition are gone. Runs that have not ended may have none yet."""
    service = walls.put_up(new_database())
    with walls.owner(service) as engine, engine.begin() as sql:
        store_run(sql, 40)
        store_run(sql, 1)
        store_run(sql, 0.5, "queued", events=0)
    whole = lost(settings, service)
    with walls.owner(service) as engine, engine.begin() as sql:
        gone = store_run(sql, 39, events=0)

    [(check, shown)] = lost(settings, service)

    assert ([], "lost events") == (whole, check)
    assert shown.startswith("1 of the runs") and str(gone) in shown


def test_what_the_migrations_have_made_and_is_gone_is_named(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """A foreign key, an index, a trigger that is gone and one that is disabled; of many, some."""
    service = walls.put_up(new_database())
    whole = lost(settings, service)
    with walls.owner(service) as engine, engine.begin() as sql:
        sql.execute(
            text(
                "ALTER TABLE runs DROP CONSTRAINT fk_runs_thread_id;"
                "ALTER TABLE runs DISABLE TRIGGER runs_leave_their_events;"
                "DROP TRIGGER events_have_their_deliveries ON run_events;"
                "DROP INDEX ix_runs_owner"
            )
        )
    some = lost(settings, service)
    with walls.owner(service) as engine, engine.begin() as sql:
        sql.execute(text("ALTER TABLE users DROP CONSTRAINT pk_users CASCADE"))

    [_, (check, many)] = lost(settings, service)

    names = "events_have_their_deliveries, fk_runs_thread_id, ix_runs_owner"
    lacks = ("schema objects", f"the schema lacks {names}, or they are invalid")
    assert [] == whole
    assert ["disabled triggers", "schema objects"] == [check for check, _ in some]
    assert some[0][1].startswith("runs_leave_their_events: disabled") and lacks == some[1]
    assert "schema objects" == check and " others, or" in many


def test_what_was_disabled_is_enabled_by_the_advice(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """Nothing has to be loaded again for a trigger that is there."""
    service = walls.put_up(new_database())
    with walls.owner(service) as engine, engine.begin() as sql:
        sql.execute(text("ALTER TABLE run_events DISABLE TRIGGER events_have_their_deliveries"))
        sql.execute(text("ALTER TABLE runs ENABLE REPLICA TRIGGER runs_leave_their_events"))

    with walls.owner(service) as engine, engine.begin() as sql:
        [found] = restore_checks.of_objects(settings, sql)
        sql.execute(text(found.advice.removeprefix("As the owner: ")))

    assert [] == lost(settings, service)


def test_what_is_disabled_in_a_partition_alone_is_enabled_by_the_advice(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """A load with `--disable-triggers` that was broken off leaves the partition's copy so."""
    service = walls.put_up(new_database())
    with walls.owner(service) as engine, engine.begin() as sql:
        sql.execute(text("ALTER TABLE run_events_first DISABLE TRIGGER USER"))

    with walls.owner(service) as engine, engine.begin() as sql:
        [found] = restore_checks.of_objects(settings, sql)
        sql.execute(text(found.advice.removeprefix("As the owner: ")))

    assert found.text.startswith("events_have_their_deliveries: disabled")
    assert [] == lost(settings, service)


def test_foreign_keys_that_are_switched_off_are_switched_on_by_the_advice(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """Postgres has triggers of its own for them, also in tables that have no other trigger."""
    service = walls.put_up(new_database())
    with walls.owner(service) as engine, engine.begin() as sql:
        sql.execute(text("ALTER TABLE runs DISABLE TRIGGER ALL"))
        sql.execute(text("ALTER TABLE memberships DISABLE TRIGGER ALL"))

    with walls.owner(service) as engine, engine.begin() as sql:
        [ours, keys] = restore_checks.of_objects(settings, sql)
        for advice in (ours.advice, keys.advice):
            statements = advice.partition(": ")[2].partition(". ")[0]
            sql.execute(text(statements))

    assert "runs_leave_their_events" in ours.text
    assert keys.text.startswith("memberships, runs: ")
    assert [] == lost(settings, service)


def test_an_index_that_is_not_valid_is_named(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """Postgres leaves it where it could not build one beside writers, and no query uses it."""
    service = walls.put_up(new_database())
    with walls.owner(service) as engine, engine.begin() as sql:
        invalid = (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_runs_owner'::regclass"
        )
        sql.execute(text(invalid))

    [(check, shown)] = lost(settings, service)

    assert "schema objects" == check and "lacks ix_runs_owner, or" in shown
