"""Tidying up: the deletion of what is too old, and room for events to come."""

import threading
from dataclasses import replace

import psycopg
import pytest
from sqlalchemy import insert, select, text

from arkloop.shared import ids
from arkloop.shared.runs import retention, sweep, tidying
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import forgotten_events
from tests import walls
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually, in_parallel

FUNCTION = "add_run_events_partition"
#: When the events of a run that was deleted are to be collected: long ago.
DUE = ago(hours=1)
BROKEN = "CREATE FUNCTION {}(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN {} END $$"


@pytest.fixture
def nothing_left(connections: Connections) -> None:
    """A database in which no pass is full: the first one has the usage of a day to sum up."""
    while tidying.tidy(connections):
        pass


@pytest.fixture
def tidied(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> list[Connections]:
    """The passes so far, each with its connections."""
    passes: list[Connections] = []
    tidy = tidying.tidy

    def counted(connections: Connections) -> bool:
        passes.append(connections)
        return tidy(connections)

    monkeypatch.setattr(tidying, "tidy", counted)
    return passes


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("RAISE EXCEPTION 'broken';", id="error"),
        pytest.param("RAISE EXCEPTION USING ERRCODE = 'query_canceled';", id="too-long"),
    ],
)
def test_what_fails_does_not_stop_the_rest(
    stored: StoredRuns, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    """No partition can be made, and old runs are deleted all the same."""
    claim = stored.claimed()
    stored.finish(claim)
    stored.set(claim.run_id, ended_at=ago(days=3_001))
    settings = replace(stored.connections.settings, retention_days=3_000)
    url = walls.as_user(settings.database_url, "postgres").replace("+psycopg", "", 1)
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"ALTER FUNCTION {FUNCTION} RENAME TO taken_away")
        owner.execute(BROKEN.format(FUNCTION, body))
        try:
            tidying.tidy(replace(stored.connections, settings=settings))
        finally:
            owner.execute(f"DROP FUNCTION {FUNCTION}")
            owner.execute(f"ALTER FUNCTION taken_away RENAME TO {FUNCTION}")

    assert "tidying up failed: partitions of events" in caplog.text
    with stored.connections.reading() as sql:
        assert sql.exec_driver_sql("SELECT id FROM runs WHERE id = %s", (claim.run_id,)).all() == []


def test_one_of_the_processes_that_sweep_tidies_up(
    connections: Connections, tidied: list[Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has turns to sweep, and none of them tidies up by a clock of its own."""
    swept: set[int] = set()
    sweep_ = sweep.sweep

    def noted(connections: Connections) -> None:
        swept.add(threading.get_ident())
        sweep_(connections)

    monkeypatch.setattr(sweep, "sweep", noted)
    _set(connections, tidied_at="NULL")
    quick = replace(connections, settings=replace(connections.settings, sweep_seconds=0.1))
    loops = [sweep.start(quick) for _ in range(4)]

    def all_have_swept() -> bool:
        _set(connections, swept_at="NULL")
        return len(swept) == len(loops)

    try:
        eventually(all_have_swept)
    finally:
        for loop in loops:
            loop.stop()
        eventually(lambda: not any(one.name == "sweep" for one in threading.enumerate()))

    assert 1 == len(tidied)


@pytest.mark.parametrize(
    ("tidied_at", "has_turn"),
    [
        pytest.param("NULL", True, id="never"),
        pytest.param("now() - interval '15 seconds'", False, id="just-now"),
        # Whether or not the process that took that turn has come to its end.
        pytest.param("now() - interval '31 seconds'", True, id="before-this-period"),
        pytest.param("now() + interval '1 hour'", True, id="clock-set-back"),
    ],
)
def test_tidying_up_has_a_turn_in_each_period(
    connections: Connections, tidied: list[Connections], tidied_at: str, has_turn: bool
) -> None:
    """All processes ask at once, and at most one gets it."""
    _set(connections, tidied_at=tidied_at)

    in_parallel(8, lambda _: tidying.tidy_in_turn(connections))

    assert has_turn == len(tidied)


@pytest.mark.usefixtures("nothing_left")
def test_what_tidying_up_has_left_is_done_in_the_next_turn(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of any process continues the last one at once, until one finds nothing more."""
    monkeypatch.setattr(retention, "BITS_OF_A_PASS", 1)
    _set(connections, tidied_at="NULL")

    def is_collected() -> bool:
        """Delete a run, tidy up, and look whether its note is gone."""
        with connections.transaction() as tx:
            tx.sql.execute(insert(forgotten_events).values(run_id=ids.new_id(), collect_at=DUE))
        tidying.tidy_in_turn(connections)
        with connections.reading() as sql:
            is_due = forgotten_events.c.collect_at <= DUE
            return sql.execute(select(forgotten_events).where(is_due)).all() == []

    assert is_collected()
    assert is_collected(), "the first pass was full"
    tidying.tidy_in_turn(connections)
    assert not is_collected(), "the third one was not"


def _set(connections: Connections, **times: str) -> None:
    with connections.transaction() as tx:
        for column, at in times.items():
            tx.sql.execute(text(f"UPDATE sweep_turn SET {column} = {at}"))
