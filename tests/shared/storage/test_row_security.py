"""Behind the wall a statement sees the rows of the orgs that it works for, and no others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, Table, text
from sqlalchemy.exc import ProgrammingError

from arkloop.shared.config import Settings
from arkloop.shared.errors import RunNotFound
from arkloop.shared.storage import row_security
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.tables import metadata
from tests import walls
from tests.shared_app import PATIENT

#: A value for each type that a column without a default may have.
VALUES: dict[type, Any] = {
    str: lambda: uuid4().hex,
    UUID: uuid4,
    int: lambda: 1,
    float: lambda: 1.0,
    bool: lambda: False,
    bytes: lambda: uuid4().bytes,
    date: date.today,
    Decimal: lambda: Decimal(1),
    object: lambda: Jsonb({}),
    list: list,
    datetime: lambda: datetime.now(UTC),
}
#: The tables whose rows others refer to: each org has one row there, which has these names.
NAMES = {"run_id": "runs", "thread_id": "threads", "config_id": "mcp_configs", "user_id": "users"}
NAMES["provider_id"] = "identity_providers"


@dataclass(frozen=True)
class Walled:
    """A database with a row of two orgs in each table, and connections of the service's role."""

    url: str
    ours: UUID
    theirs: UUID
    rows: dict[str, dict[UUID, dict[str, Any]]]  # by table and org, without generated columns


@pytest.fixture(scope="module")
def walled(settings: Settings) -> Walled:
    ours, theirs = uuid4(), uuid4()
    ids = {org: {table: uuid4() for table in NAMES.values()} for org in (ours, theirs)}
    rows: dict[str, dict[UUID, dict[str, Any]]] = {}
    url = walls.put_up(settings.database_url)
    with psycopg.connect(plain(settings.database_url, user="postgres")) as owner:
        # Without triggers and foreign keys each row stands for itself.
        owner.execute("SET session_replication_role = replica")
        for table in metadata.sorted_tables:
            if table.name not in row_security.OPEN:
                rows[table.name] = {org: row_of(table, org, ids[org]) for org in ids}
                for row in rows[table.name].values():
                    insert(owner, table, row)
    return Walled(url, ours, theirs, rows)


def row_of(table: Table, org: UUID, ids: dict[str, UUID]) -> dict[str, Any]:
    """Return a row of the org, with what must not be null."""
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.computed is not None:
            continue
        if column.name in ("org_id", "visible_to") or (
            table.name == "orgs" and column.name == "id"
        ):
            row[column.name] = org
        elif column.name in NAMES:
            row[column.name] = ids[NAMES[column.name]]
        elif column.name == "id" and table.name.removesuffix("_metadata") + "s" in ids:
            row["id"] = ids[table.name.removesuffix("_metadata") + "s"]
        elif column.name == "id" and table.name in ids:
            row["id"] = ids[table.name]
        elif not column.nullable and (column.server_default is None or column.primary_key):
            row[column.name] = VALUES[type_of(column.type)]()
    return row


def type_of(kind: Any) -> type:
    return cast(type, kind.python_type)


def insert(owner: psycopg.Connection[Any], table: Table, row: dict[str, Any]) -> None:
    owner.execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table.name),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(sql.Placeholder() * len(row)),
        ),
        [*row.values()],
    )


def plain(url: str, *, user: str) -> str:
    """Return a URL of psycopg's own, for a user."""
    return walls.as_user(url, user).replace("+psycopg", "", 1)


@pytest.fixture
def service(walled: Walled) -> Iterator[psycopg.Connection[Any]]:
    """A plain connection with the service's role, in a transaction that is rolled back."""
    with psycopg.connect(plain(walled.url, user=walls.ROLE)) as opened:
        yield opened
        opened.rollback()


@pytest.fixture(scope="module")
def behind(walled: Walled, settings: Settings) -> Iterator[Connections]:
    """Connections of the service to the database behind the wall; one at a time."""
    opened = connect(
        replace(settings, database_url=walled.url),
        application="tests-walled",
        pool_size=1,
        timeouts=PATIENT,
    )
    yield opened
    opened.close()


TABLES = sorted(set(metadata.tables) - set(row_security.OPEN))


def test_each_table_has_a_policy_or_needs_none(service: psycopg.Connection[Any]) -> None:
    """A new table is found here: it has `org_id`, or `row_security.py` says whose its rows are."""
    in_database = service.execute(
        "SELECT relname, relrowsecurity FROM pg_class"
        " WHERE relkind IN ('r', 'p') AND NOT relispartition"
        " AND relnamespace = 'public'::regnamespace"
    ).fetchall()

    assert {(name, name not in row_security.OPEN) for name, _ in in_database} == set(in_database)
    assert set(TABLES) == row_security.policies().keys()
    assert set(TABLES) | set(row_security.OPEN) == {name for name, _ in in_database}


@pytest.mark.parametrize("table", TABLES)
def test_without_an_org_there_are_no_rows(service: psycopg.Connection[Any], table: str) -> None:
    """Neither where the setting is missing nor where it is empty, and nothing can be changed."""
    for setting in (None, ""):
        if setting is not None:
            work_for(service, setting)
        assert [] == service.execute(f"SELECT * FROM {table}").fetchall()
        if table != "ledger_entries":  # a trigger refuses the statement itself
            assert 0 == service.execute(f"DELETE FROM {table}").rowcount


@pytest.mark.parametrize("table", TABLES)
def test_an_org_sees_its_rows_alone(
    service: psycopg.Connection[Any], walled: Walled, table: str
) -> None:
    """It sees one row of two, and can insert none of the other org."""
    work_for(service, "*")
    assert 2 == count(service, table)

    work_for(service, str(walled.ours))
    assert 1 == count(service, table)
    one, other = (walled.rows[table][org] for org in (walled.ours, walled.theirs))
    assert 1 == count(service, table, one)
    assert 0 == count(service, table, other)
    with pytest.raises(errors.InsufficientPrivilege), service.transaction():
        insert(service, metadata.tables[table], other)
    work_for(service, f"{walled.ours},{walled.theirs}")
    assert 2 == count(service, table)


def count(opened: psycopg.Connection[Any], table: str, row: dict[str, Any] | None = None) -> int:
    keys = [column.name for column in metadata.tables[table].primary_key] or ["org_id"]
    where = sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), row[name]) for name in keys if row
    )
    query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
    found = opened.execute(query + sql.SQL(" WHERE ") + where if row else query).fetchone()
    assert found is not None
    return int(found[0])


def work_for(opened: psycopg.Connection[Any], orgs: str) -> None:
    opened.execute("SELECT set_config('arkloop.orgs', %s, true)", [orgs])


# ---- through the service's own connections -------------------------------------------


def seen(opened: Connection) -> set[UUID]:
    return set(opened.scalars(text("SELECT org_id FROM threads")))


def test_connections_are_those_of_an_org_for_one_block(walled: Walled, behind: Connections) -> None:
    """The next one that gets the same connection works for the service, or for another org."""
    both = {walled.ours, walled.theirs}
    for org in (walled.ours, walled.theirs, walled.ours):
        for block in (behind.of(org).reading, behind.of(org).transaction):
            with block() as opened:
                opened = getattr(opened, "sql", opened)
                assert {org} == seen(opened)
                assert {org} == seen(opened), "in the second statement, too"
            with behind.reading() as opened:
                assert both == seen(opened)
        with behind.of(org).statement() as tx:
            assert {org} == seen(tx.sql)
    with behind.of(*both).transaction() as tx:
        assert both == seen(tx.sql)
    with behind.of().reading() as opened:
        assert set() == seen(opened)


def test_a_first_statement_for_several_rows_is_for_its_own_org(
    walled: Walled, behind: Connections
) -> None:
    """The driver executes it in another way; it has the connection of another org's block."""
    lock = "SELECT FROM threads WHERE org_id = %s FOR UPDATE"
    for other, org in ((walled.ours, walled.theirs), (walled.theirs, walled.ours)):
        with behind.of(other).reading() as opened:
            assert {other} == seen(opened)
        with behind.of(org).transaction() as tx:
            assert 2 <= tx.sql.exec_driver_sql(lock, [(org,), (org,)]).rowcount


def test_an_error_takes_nothing_along(walled: Walled, behind: Connections) -> None:
    """The block after an error is as narrow as it asks for."""
    for broken in ("SELECT 1/0", "SELECT no_column FROM threads"):
        for block in (behind.of(walled.ours).reading, behind.of(walled.ours).transaction):
            with pytest.raises(Exception, match="division|no_column"), block() as opened:
                getattr(opened, "sql", opened).execute(text(broken))
            with pytest.raises(RunNotFound), block() as opened:
                assert {walled.ours} == seen(getattr(opened, "sql", opened))
                raise RunNotFound()
            with behind.reading() as opened:
                assert {walled.ours, walled.theirs} == seen(opened)


def test_a_savepoint_takes_nothing_along(walled: Walled, behind: Connections) -> None:
    """A transaction stays narrow when a part of it is rolled back."""
    with behind.of(walled.ours).transaction() as tx:
        savepoint = tx.sql.begin_nested()
        assert {walled.ours} == seen(tx.sql)
        savepoint.rollback()
        assert {walled.ours} == seen(tx.sql)


def test_nothing_is_written_for_another_org(walled: Walled, behind: Connections) -> None:
    """Postgres refuses the row."""
    row = {**walled.rows["budgets"][walled.theirs], "scope": "org"}
    with pytest.raises(ProgrammingError, match="row-level security"):
        with behind.of(walled.ours).transaction() as tx:
            tx.sql.execute(metadata.tables["budgets"].insert().values(row))


@pytest.mark.parametrize("block", ["reading", "statement", "transaction"])
def test_it_costs_no_round_trip(
    walled: Walled, behind: Connections, tmp_path: Path, block: str
) -> None:
    """The setting goes with the first statement of a transaction, and with each one without."""

    def round_trips(of: Connections) -> int:
        with (tmp_path / "trace").open("w+b") as trace:
            with getattr(of, block)() as opened:
                opened = getattr(opened, "sql", opened)
                driver = cast(psycopg.Connection[Any], opened.connection.driver_connection)
                driver.pgconn.trace(trace.fileno())
                for _ in range(1 if block == "statement" else 3):
                    assert seen(opened)
            driver.pgconn.untrace()
            trace.seek(0)
            senders = [line.split(b"\t")[1] for line in trace.read().splitlines()]
        return sum(one == b"F" != other for one, other in pairwise([b"", *senders][::-1]))

    assert round_trips(behind) == round_trips(behind.of(walled.ours)) > 0


def test_the_wall_comes_and_goes(new_database: Callable[[], str]) -> None:
    """`enforce` changes only what is not as it should be; `lift` leaves nothing."""
    url = new_database()
    with walls.owner(url) as engine:
        walls.put_up(url)
        with engine.begin() as opened:
            assert row_security.is_on(opened)
        assert [] == row_security.enforce(engine, for_owner=False)
        with engine.begin() as opened:
            opened.execute(text("ALTER TABLE runs DISABLE ROW LEVEL SECURITY"))
            opened.execute(text("CREATE POLICY all_of_it ON threads USING (true)"))
        assert ["threads", "runs"] == row_security.enforce(engine, for_owner=False)
        assert set(TABLES) == set(row_security.enforce(engine, for_owner=True))
        row_security.lift(engine)
        with engine.begin() as opened:
            assert not row_security.is_on(opened)
            assert 0 == opened.scalar(text("SELECT count(*) FROM pg_policy"))
            left = (
                "SELECT count(*) FROM pg_class"
                " WHERE (relrowsecurity OR relforcerowsecurity) AND NOT relispartition"
            )
            assert 0 == opened.scalar(text(left))


def test_tables_of_other_applications_are_not_touched(new_database: Callable[[], str]) -> None:
    """They keep their policies, unlike tables of a later release, whose policies have our names."""
    with walls.owner(new_database()) as engine:
        with engine.begin() as opened:
            for table, policy in (("Their Table", "Their 1st"), ("ours_of_later", "of_orgs_1")):
                for statement in (
                    f'CREATE TABLE "{table}" (id uuid)',
                    f'CREATE POLICY "{policy}" ON "{table}" USING (false)',
                    f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY',
                ):
                    opened.execute(text(statement))
            opened.execute(text('CREATE POLICY "On Ours" ON threads USING (true)'))

        row_security.lift(engine)

        with engine.begin() as opened:
            policies = opened.scalars(text("SELECT polname FROM pg_policy")).all()
            walled = opened.scalars(
                text("SELECT relname FROM pg_class WHERE relforcerowsecurity")
            ).all()
        assert (["Their 1st"], ["Their Table"]) == (policies, walled)
