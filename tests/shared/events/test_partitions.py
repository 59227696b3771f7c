"""The partitions of events: made ahead of time, and what becomes of events without one."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from arkloop.api.streaming import run_heads, stream_pages
from arkloop.shared.config import Settings
from arkloop.shared.events import partitions
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections, connect
from arkloop.worker.process import event_writer
from tests import walls
from tests.shared_app import PATIENT
from tests.waiting import in_parallel

DAY = timedelta(days=1)
INSERT = "INSERT INTO run_events VALUES (:id, :seq, 'message.delta', '{}') ON CONFLICT DO NOTHING"


@pytest.fixture
def connections(new_database: Callable[[], str], settings: Settings) -> Iterator[Connections]:
    """A database of the test's own."""
    own = replace(settings, database_url=new_database())
    opened = connect(own, application="tests", pool_size=5, timeouts=PATIENT)
    yield opened
    opened.close()


def with_retention(connections: Connections, days: int) -> Connections:
    return replace(connections, settings=replace(connections.settings, retention_days=days))


def ends(connections: Connections) -> list[datetime]:
    with connections.reading() as sql:
        return [one.end for one in partitions.read(sql)]


def owner_of(connections: Connections) -> psycopg.Connection[Any]:
    """Open a connection of the tables' owner."""
    url = walls.as_user(connections.settings.database_url, "postgres")
    return psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True)


def place_of_event(connections: Connections, run_id: object) -> str | None:
    with connections.reading() as sql:
        query = text("SELECT tableoid::regclass::text FROM run_events WHERE run_id = :id")
        return sql.scalar(query, {"id": run_id})


def store(connections: Connections, run_id: object) -> None:
    with connections.statement() as tx:
        for _ in range(2):  # repeated, as after a lost answer
            tx.sql.execute(text(INSERT), {"id": run_id, "seq": 1})


READS: dict[str, tuple[str, Callable[[UUID], dict[str, Any]]]] = {
    "a page of a stream": (
        stream_pages._PAGE,
        lambda run_id: {
            "named": False,
            "terminal": "{}",
            "run_id": run_id,
            "after_seq": 0,
            "limit": 10,
            "most_bytes": 1000,
        },
    ),
    "heads of runs": (
        run_heads._NEWS,
        lambda run_id: {"ids": f"{{{run_id}}}", "seqs": "{0}"},
    ),
    "events that were cut off": (
        event_writer._CUT_OFF,
        lambda run_id: {"ids": f"{{{run_id}}}", "firsts": "{2}"},
    ),
    "events after a cursor": (
        "SELECT seq, type, payload FROM run_events WHERE run_id = %(run_id)s ORDER BY seq",
        lambda run_id: {"run_id": run_id},
    ),
}


@pytest.mark.parametrize("name", READS)
def test_a_prepared_statement_reads_one_partition(connections: Connections, name: str) -> None:
    """A plan for any run leaves out all partitions but that of the run when it is executed."""
    run_id = new_id()
    store(connections, run_id)
    statement, values_for = READS[name]
    values = values_for(run_id)
    numbers = {key: f"${number}" for number, key in enumerate(values, 1)}
    prepared = re.sub(r"%\((\w+)\)s", lambda match: numbers[match[1]], statement)
    url = connections.settings.database_url.replace("+psycopg", "", 1)
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as sql:
        sql.execute(
            "SET enable_seqscan = off; SET enable_bitmapscan = off; SET arkloop.orgs = '*';"
            " SET plan_cache_mode = force_generic_plan"
        )
        sql.execute(f"PREPARE one AS {prepared}".encode())
        marks = ", ".join(f"%({key})s" for key in values)
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE one ({marks})".encode()
        row = sql.execute(explain, values).fetchone()
    assert row is not None

    read = {
        node["Relation Name"]
        for node in nodes(row[0][0]["Plan"])
        if node.get("Relation Name", "").startswith("run_events") and node["Actual Loops"]
    }
    assert {"run_events_first"} == read


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.mark.parametrize(("days", "width"), [(1, 1), (7, 1), (30, 5), (90, 15), (365, 60)])
def test_a_partition_has_a_sixth_of_the_retention(days: int, width: int) -> None:
    """A partition has whole days, and at least one."""
    assert timedelta(days=width) == partitions.width(days)


def test_bounds_are_ids_of_their_time() -> None:
    """An id that is made now is between the bounds of this minute and the next."""
    now, run_id = datetime.now(UTC), new_id()

    assert partitions.bound(now - 60 * timedelta(seconds=1)) < run_id
    assert run_id < partitions.bound(now + 60 * timedelta(seconds=1))
    assert abs(partitions.time_of(run_id) - now) < timedelta(seconds=60)


def test_the_next_partition_is_made_ahead(connections: Connections) -> None:
    """It begins where the last one ends, and is made once, when less than a whole one is left."""
    patient = with_retention(connections, 360)
    before = ends(connections)

    assert not partitions.add_ahead(connections)
    made = in_parallel(4, lambda _: partitions.add_ahead(patient))

    assert 1 == sum(made)
    assert not partitions.add_ahead(patient)
    assert [*before, before[-1] + 60 * DAY] == ends(connections)
    run_id = partitions.bound(before[-1] + DAY)
    store(connections, run_id)
    assert f"run_events_{before[-1]:%Y%m%d}" == place_of_event(connections, run_id)


def test_events_without_a_partition_are_stored_all_the_same(connections: Connections) -> None:
    """The default partition has them, once; later partitions begin after them."""
    with owner_of(connections) as owner:
        owner.execute("DROP TABLE run_events_first")
        [(ahead,)] = owner.execute("SELECT name FROM run_events_partitions() WHERE name ~ '_2'")
        owner.execute(f"DROP TABLE {ahead}")
        past = [partitions.bound(datetime.now(UTC) - age * DAY) for age in (30, 15)]
        owner.execute("SELECT add_run_events_partition(%s, %s)", past)
    run_id = new_id()

    store(connections, run_id)
    assert "run_events_default" == place_of_event(connections, run_id)
    assert partitions.add_ahead(connections)

    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert today + 17 * DAY == ends(connections)[-1]
    store(connections, new_id())
    assert "run_events_default" == place_of_event(connections, run_id)


def test_an_event_of_the_future_keeps_its_day_from_no_other(connections: Connections) -> None:
    """Where the clock of a host was wrong, its events stay in the default partition: partitions
    for the other days are made all the same, and take events.
    """
    last = ends(connections)[-1]
    strays = [partitions.bound(last + age) for age in (10.5 * DAY, 10.75 * DAY, 12.5 * DAY)]
    for stray in strays:
        store(connections, stray)
    patient = with_retention(connections, 360)

    while partitions.add_ahead(patient):
        pass

    assert [last + days * DAY for days in (10, 12, 73)] == ends(connections)[-3:]
    for age, place in ((9, last), (11, last + 11 * DAY), (13, last + 13 * DAY)):
        run_id = partitions.bound(last + age * DAY)
        store(connections, run_id)
        assert f"run_events_{place:%Y%m%d}" == place_of_event(connections, run_id)
    assert {"run_events_default"} == {place_of_event(connections, stray) for stray in strays}


def test_a_gap_between_partitions_is_filled(connections: Connections) -> None:
    """Where Postgres' clock was ahead, the partitions that were made meanwhile leave days out: they
    get theirs when less than a whole one is left before them, but for days that have events.
    """
    last = ends(connections)[-1]
    with owner_of(connections) as owner:
        ahead = [partitions.bound(last + days * DAY) for days in (20, 35)]
        owner.execute("SELECT add_run_events_partition(%s, %s)", ahead)
    stray = partitions.bound(last + 16.5 * DAY)
    store(connections, stray)
    before = ends(connections)

    assert not partitions.add_ahead(connections)
    patient = with_retention(connections, 300)
    while partitions.add_ahead(patient):
        pass

    assert [*before[:-1], *(last + days * DAY for days in (16, 20, 35))] == ends(connections)
    for age, place in ((1, 0), (15, 0), (18, 17), (21, 20)):
        store(connections, run_id := partitions.bound(last + age * DAY))
        begin = last + place * DAY
        assert f"run_events_{begin:%Y%m%d}" == place_of_event(connections, run_id)
    assert "run_events_default" == place_of_event(connections, stray)


def test_a_gap_that_has_begun_is_filled_from_the_day_after_tomorrow_on(
    connections: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    """The default partition has the events of its first days, and the log says so, once."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with owner_of(connections) as owner:
        for (name,) in owner.execute(
            "SELECT name FROM run_events_partitions() WHERE upper_id IS NOT NULL"
        ).fetchall():
            owner.execute(f"DROP TABLE {name}")
        for days in ((-10, -5), (5, 90)):
            bounds = [partitions.bound(today + day * DAY) for day in days]
            owner.execute("SELECT add_run_events_partition(%s, %s)", bounds)

    assert partitions.add_ahead(connections)
    assert not partitions.add_ahead(connections)

    with connections.reading() as sql:
        filled = partitions.read(sql)[1]
    assert partitions.bound(today + 2 * DAY) == filled.lower
    assert today + 5 * DAY == filled.end
    assert 1 == caplog.text.count("no partition of run_events was made in time")


def test_who_reads_for_long_is_not_waited_for(connections: Connections) -> None:
    """The partition is made when the reader is done; nobody waits behind the one that gave up."""
    patient = with_retention(connections, 360)
    with owner_of(connections) as dump, dump.transaction():
        dump.execute("SELECT FROM run_events_default")
        assert not partitions.add_ahead(patient)
        with connections.reading() as sql:
            sql.execute(text("SET statement_timeout = '60s'"))  # the dump does not end before
            sql.execute(text("SELECT count(*) FROM run_events"))
            sql.execute(text("RESET statement_timeout"))

    assert partitions.add_ahead(patient)


def test_a_partition_is_read_by_the_whole_table_alone(connections: Connections) -> None:
    """A role that owns no table finds nothing in a partition, whatever it says it works for."""
    run_id = new_id()
    store(connections, run_id)
    url = connections.settings.database_url
    walled = walls.put_up(url).replace("+psycopg", "", 1)
    with walls.owner(url) as engine, engine.begin() as sql:
        # As earlier releases have granted it.
        sql.execute(
            text(f"GRANT SELECT, DELETE ON run_events_first, run_events_default TO {walls.ROLE}")
        )
    with psycopg.connect(walled) as service:
        service.execute("SET arkloop.orgs = '*'")
        place = service.execute("SELECT tableoid::regclass::text FROM run_events").fetchone()
        assert ("run_events_first",) == place
        for table in ("run_events_first", "run_events_default"):
            assert [] == service.execute(f"SELECT FROM {table}").fetchall()
            assert 0 == service.execute(f"DELETE FROM {table}").rowcount
