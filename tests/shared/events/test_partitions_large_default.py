"""Partitions of events beside a default partition that is large: `arkloop migrate` makes them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from arkloop.shared.config import Settings
from arkloop.shared.events import partitions
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections, connect
from tests import walls
from tests.shared.events.test_partitions import ends, owner_of, place_of_event, store
from tests.shared_app import PATIENT
from tests.waiting import eventually

DAY = timedelta(days=1)


@pytest.fixture
def connections(new_database: Callable[[], str], settings: Settings) -> Iterator[Connections]:
    """A database of the test's own."""
    own = replace(settings, database_url=new_database())
    opened = connect(own, application="tests", pool_size=5, timeouts=PATIENT)
    yield opened
    opened.close()


@pytest.fixture
def engine(connections: Connections) -> Iterator[Engine]:
    """Connect as the tables' owner; `notices` has what Postgres says it does."""
    url = walls.as_user(connections.settings.database_url, "postgres")
    made = create_engine(url, connect_args={"options": "-c client_min_messages=debug1"})
    notices: list[str] = []

    @event.listens_for(made, "connect")
    def listen(connection: Any, _record: Any) -> None:
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))

    made.notices = notices  # type: ignore[attr-defined]  # a note of the test
    yield made
    made.dispose()


@pytest.fixture
def late(connections: Connections) -> UUID:
    """Leave out the partitions of two weeks, and store 36 MiB of events; returns their run."""
    run_id = new_id()
    with owner_of(connections) as owner:
        owner.execute("DROP TABLE run_events_first")
        [(ahead,)] = owner.execute("SELECT name FROM run_events_partitions() WHERE name ~ '_2'")
        owner.execute(f"DROP TABLE {ahead}")
        past = [partitions.bound(datetime.now(UTC) - age * DAY) for age in (30, 15)]
        owner.execute("SELECT add_run_events_partition(%s, %s)", past)
        owner.execute(
            "INSERT INTO run_events SELECT %s, n, 'message.delta', repeat('x', 1500)"
            " FROM generate_series(1, 24000) AS n",
            [run_id],
        )
    return run_id


@pytest.mark.owner
def test_a_large_default_partition_is_not_looked_at_under_a_lock(
    connections: Connections, engine: Any, late: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep would keep others waiting for its rows, and leaves it to `make_room`, for which
    Postgres looks at them before it takes a lock.
    """
    for _ in range(2):
        assert not partitions.add_ahead(connections)
    assert 1 == caplog.text.count("run_events_default is large: `arkloop migrate` makes")

    made = partitions.make_room(engine, retention_days=90, lock_seconds=5)

    implied = [notice for notice in engine.notices if "is implied by existing" in notice]
    scanned = [notice for notice in engine.notices if 'ing table "run_events_default"' in notice]
    assert len(made) == len(implied) == len(scanned) == len(ends(connections)) - 1
    assert ends(connections)[-1] > datetime.now(UTC) + (partitions.PARTS + 2) * 15 * DAY
    assert "run_events_default" == place_of_event(connections, late)
    store(connections, soon := partitions.bound(datetime.now(UTC) + 3 * DAY))
    assert made[0] == place_of_event(connections, soon)
    store(connections, tomorrow := partitions.bound(datetime.now(UTC) + DAY))
    assert "run_events_default" == place_of_event(connections, tomorrow)
    assert [] == exclusions(connections)
    assert [] == partitions.make_room(engine, retention_days=90, lock_seconds=5)


@pytest.mark.owner
def test_who_cannot_make_room_leaves_room(
    connections: Connections, engine: Engine, late: UUID
) -> None:
    """Beside a dump nothing is made, and what a killed call has left is removed: events of that
    time could not be stored otherwise.
    """
    with owner_of(connections) as dump, dump.transaction():
        dump.execute("SELECT FROM run_events_default LIMIT 1")
        with pytest.raises(OperationalError):
            partitions.make_room(engine, retention_days=90, lock_seconds=0)
    with owner_of(connections) as owner:
        owner.execute(
            "ALTER TABLE run_events_default ADD CONSTRAINT ck_run_events_20991231"
            " CHECK (run_id <> '00000000-0000-0000-0000-000000000000') NOT VALID"
        )

    assert partitions.make_room(engine, retention_days=90, lock_seconds=5)
    assert [] == exclusions(connections)


@pytest.mark.owner
def test_what_a_killed_call_has_left_is_removed_by_the_sweep(connections: Connections) -> None:
    """Events of that time can be stored again; but not while somebody makes room."""
    tomorrow = partitions.bound(datetime.now(UTC) + DAY)
    with owner_of(connections) as owner:
        owner.execute("DROP TABLE run_events_first")
        owner.execute(
            "ALTER TABLE run_events_default ADD CONSTRAINT ck_run_events_20991231"
            " CHECK (run_id IS NULL) NOT VALID"
        )
        owner.execute("SELECT pg_advisory_lock(%s)", [partitions._LOCK_KEY])
        partitions.add_ahead(connections)
        assert ["ck_run_events_20991231"] == exclusions(connections)
    own = replace(
        connections.settings, database_url=walls.put_up(connections.settings.database_url)
    )
    service = connect(own, application="tests", pool_size=1, timeouts=PATIENT)

    partitions.add_ahead(service)

    service.close()
    assert [] == exclusions(connections)
    store(connections, tomorrow)


@pytest.mark.owner
def test_room_is_made_from_the_day_after_tomorrow_on(
    connections: Connections, engine: Engine, late: UUID
) -> None:
    """A partition does not begin at the end of the last one, if that is soon: until it is there,
    the default one refuses its events.
    """
    now = datetime.now(UTC)
    with owner_of(connections) as owner:
        owner.execute("CREATE TABLE soon (LIKE run_events)")
        bounds = (partitions.bound(now + 0.01 * DAY), partitions.bound(now + 0.02 * DAY))
        owner.execute(
            "ALTER TABLE run_events ATTACH PARTITION soon"
            f" FOR VALUES FROM ('{bounds[0]}') TO ('{bounds[1]}')"
        )

    assert partitions.make_room(engine, retention_days=90, lock_seconds=5)

    with connections.reading() as sql:
        following = next(one for one in partitions.read(sql) if one.upper > bounds[1])
    assert following.lower is not None
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    assert today + 2 * DAY == partitions.time_of(following.lower)


@pytest.mark.owner
def test_two_calls_that_make_room_do_not_disturb_each_other(
    connections: Connections, engine: Engine, late: UUID
) -> None:
    """The second one waits, and finds that nothing is left to do: what it would remove as left
    behind is what the first one works with.
    """
    with owner_of(connections) as other, ThreadPoolExecutor() as pool:
        with other.transaction():
            # Beside it constraints are added and looked at, and nothing is attached.
            other.execute("LOCK TABLE ONLY run_events IN SHARE UPDATE EXCLUSIVE MODE")
            calls = [pool.submit(partitions.make_room, engine, retention_days=90, lock_seconds=20)]
            eventually(lambda: bool(exclusions(connections)))
            said: list[str] = []
            second = partial(partitions.make_room, engine, report=said.append)
            calls.append(pool.submit(second, retention_days=90, lock_seconds=20))
            eventually(lambda: said)
        made = [call.result() for call in calls]

    assert [True, False] == [bool(names) for names in made]
    assert [] == exclusions(connections)


@pytest.mark.owner
def test_room_is_made_for_the_whole_retention(
    connections: Connections, engine: Engine, late: UUID
) -> None:
    """The last partition is no measure: it has one day, and the day before it has none."""
    begin = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + 3 * DAY
    with owner_of(connections) as owner:
        owner.execute("CREATE TABLE a_day (LIKE run_events)")
        owner.execute(
            "ALTER TABLE run_events ATTACH PARTITION a_day FOR VALUES"
            f" FROM ('{partitions.bound(begin)}') TO ('{partitions.bound(begin + DAY)}')"
        )

    made = partitions.make_room(engine, retention_days=90, lock_seconds=5)

    assert len(made) == 1 + 8
    assert begin == ends(connections)[1]
    assert ends(connections)[-1] == begin + (1 + 8 * 15) * DAY


@pytest.mark.owner
def test_a_constraint_of_other_bounds_vouches_for_nothing(
    connections: Connections, late: UUID
) -> None:
    """Its name is that of the partition, but Postgres would look at all events for this one."""
    begin, end = (partitions.bound(datetime.now(UTC) + days * DAY) for days in (30, 60))
    name = f"ck_run_events_{partitions.time_of(begin):%Y%m%d}"
    add = "SELECT add_run_events_partition(%s, %s)"
    with owner_of(connections) as owner:
        for upper, is_made in ((late, None), (end, True)):
            owner.execute(
                f"ALTER TABLE run_events_default DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT"
                f" {name} CHECK (run_id < '{begin}' OR run_id >= '{upper}')"
            )
            assert (is_made,) == owner.execute(add, [begin, end]).fetchone()


@pytest.mark.owner
def test_an_event_that_arrives_while_room_is_made_is_left_out(
    connections: Connections, engine: Engine, late: UUID
) -> None:
    """It is stored after the days were looked at and before the default partition refuses it: the
    partition is made for other days.
    """
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    stray = partitions.bound(today + 5 * DAY)

    @event.listens_for(engine, "before_cursor_execute")
    def arrive(_sql: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "NOT VALID" in statement:
            store(connections, stray)

    made = partitions.make_room(engine, retention_days=90, lock_seconds=5)

    assert made[0] == f"run_events_{today + 2 * DAY:%Y%m%d}"
    assert made[1] == f"run_events_{today + 6 * DAY:%Y%m%d}"
    assert "run_events_default" == place_of_event(connections, stray)


def exclusions(connections: Connections) -> list[str]:
    with connections.reading() as sql:
        return list(sql.exec_driver_sql(partitions.EXCLUSIONS).scalars())
