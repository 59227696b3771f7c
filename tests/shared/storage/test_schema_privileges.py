"""Privileges: those of the service's role, and what an owner who is no superuser may do."""

import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from alembic import command
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import InternalError

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.main import main
from arkloop.shared.events import partitions
from arkloop.shared.ids import new_id
from arkloop.shared.storage import schema, service_role
from tests import walls
from tests.shared.storage.test_schema import alembic_config, migrated_to

ROOT = Path(__file__).parents[3]


def test_limits_are_judged_before_the_last_migration_is_done(
    new_database: Callable[[], str],
) -> None:
    """The function that judges them has another table than before, and so has its caller's role."""
    engine = migrated_to("0060", walls.as_user(new_database(), "postgres"))
    with engine.begin() as sql:
        if service_role.find(sql, walls.ROLE) is None:
            sql.execute(text(f"CREATE ROLE {walls.ROLE} LOGIN"))
        sql.execute(
            text(
                f"GRANT USAGE ON SCHEMA public TO {walls.ROLE};"
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
                f" TO {walls.ROLE}"
            )
        )
    config = alembic_config()
    with engine.connect() as sql:
        config.attributes["connection"] = sql
        command.upgrade(config, "0061")
        sql.commit()
    engine.dispose()

    url = walls.behind(engine.url.render_as_string(hide_password=False))
    with psycopg.connect(url.replace("+psycopg", "", 1)) as service:
        judged = service.execute(
            "SELECT run_refusals(ARRAY[%s::uuid], ARRAY[NULL::uuid], '{0}', '{1}', '{0}')",
            [new_id()],
        ).fetchone()
    assert judged == ([None],)


@pytest.fixture
def owned(postgres: EmbeddedPostgres) -> str:
    """The URL of an empty database for its owner, as the provider of a database gives it."""
    name = f"owned_{secrets.token_hex(4)}"
    with psycopg.connect(postgres.url.replace("+psycopg", "", 1), autocommit=True) as superuser:
        superuser.execute(f"CREATE ROLE {name} LOGIN")
        superuser.execute(f"CREATE ROLE {name}_service LOGIN")
        superuser.execute(f"CREATE DATABASE {name} OWNER {name} TEMPLATE template0")
    return walls.as_user(postgres.url_of(name), name)


def service_of(owned: str) -> str:
    return walls.as_user(owned, f"{make_url(owned).username}_service")


def migrate(owned: str, service: str) -> Result:
    env = {"ARKLOOP_OWNER_DATABASE_URL": owned, "ARKLOOP_DATABASE_URL": service}
    return CliRunner().invoke(main, ["migrate", "--row-security", "on"], env=env)


def test_the_role_may_execute_all_functions_where_none_is_for_everybody(owned: str) -> None:
    """All but those of triggers, which need no privilege: those of queries, and what these call."""
    with walls.owner(owned) as engine, engine.begin() as sql:
        name = make_url(owned).username
        revoke = "REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"
        sql.execute(text(f"ALTER DEFAULT PRIVILEGES FOR ROLE {name} {revoke}"))

    assert 0 == migrate(owned, service_of(owned)).exit_code

    query = """
        SELECT proname, has_function_privilege(oid, 'EXECUTE') FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND prorettype <> 'trigger'::regtype
    """
    with psycopg.connect(service_of(owned).replace("+psycopg", "", 1)) as service:
        functions = dict(service.execute(query).fetchall())
    assert [] == [name for name, is_allowed in functions.items() if not is_allowed]
    assert {*service_role.FUNCTIONS, *service_role.OWN_FUNCTIONS} == functions.keys()


def custom_parameters(owned: str) -> list[str]:
    """Return the parameters of functions that only a superuser may store, and so restore."""
    query = """
        SELECT DISTINCT split_part(setting, '=', 1) FROM pg_proc, unnest(proconfig) AS setting
        WHERE split_part(setting, '=', 1) LIKE '%.%'
    """
    with walls.owner(owned) as engine, engine.begin() as sql:
        return list(sql.scalars(text(query)))


def test_an_owner_who_is_no_superuser_migrates_an_empty_database(owned: str) -> None:
    """The wall is put up, too: `arkloop migrate` needs no more than to own the database."""
    done = migrate(owned, service_of(owned))

    assert (0, f"{schema.needed_version()}\n") == (done.exit_code, done.stdout), done.output
    assert [] == custom_parameters(owned)


def test_a_migration_that_stopped_before_the_partitions_is_repeated(owned: str) -> None:
    """The constraint that it has left, which refuses events after a week, is removed."""
    engine = create_engine(owned)
    config = alembic_config()
    with engine.connect() as sql:
        config.attributes["connection"] = sql
        command.upgrade(config, "0061")
        later = partitions.bound(datetime.now(UTC) - timedelta(days=1))
        check = f"ck_run_events_is_in_the_first CHECK (run_id < '{later}')"
        sql.execute(text(f"ALTER TABLE run_events ADD CONSTRAINT {check}"))
        sql.commit()

    done = migrate(owned, owned)

    with engine.begin() as sql:
        event = "INSERT INTO run_events VALUES (:id, 1, 'run.started', '{}')"
        sql.execute(text("SELECT set_config('arkloop.orgs', '*', true)"))
        sql.execute(text(event), {"id": new_id()})
    engine.dispose()
    assert 0 == done.exit_code, done.output


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("""ALTER FUNCTION {} SET "arkloop.orgs" = '*'""", id="made-by-a-superuser"),
        pytest.param("DROP FUNCTION {}", id="not-restored-by-the-owner"),
    ],
)
def test_an_owner_gets_the_function_that_only_a_superuser_could_make(
    owned: str, before: str
) -> None:
    """The release before let it store a parameter that Postgres does not know."""
    function = "drop_run_events_partition(text)"
    engine = create_engine(owned)
    config = alembic_config()
    with engine.connect() as sql:
        config.attributes["connection"] = sql
        command.upgrade(config, "0075")
        sql.commit()
    engine.dispose()
    with walls.owner(owned) as engine, engine.begin() as sql:
        sql.execute(text(before.format(function)))

    done = migrate(owned, service_of(owned))

    assert (0, []) == (done.exit_code, custom_parameters(owned)), done.output
    with walls.owner(owned) as engine, engine.begin() as sql:
        query = """
            SELECT r.rolname FROM pg_proc, aclexplode(proacl) AS a
            LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE pg_proc.oid = to_regprocedure(:name)
        """
        may = set(sql.scalars(text(query), {"name": function}))
    assert {make_url(url).username for url in (owned, service_of(owned))} == may


@pytest.mark.parametrize("orgs", ["", "*"])
@pytest.mark.parametrize("is_apart", [True, False])
def test_the_service_drops_a_partition_without_runs(owned: str, is_apart: bool, orgs: str) -> None:
    """A run is found whether the service sees it or not, which is then as before."""
    service = service_of(owned) if is_apart else owned
    assert 0 == migrate(owned, service).exit_code
    past = partitions.bound(datetime.now(UTC) - timedelta(days=2))
    with walls.owner(owned) as engine, engine.begin() as sql:
        sql.execute(text("DROP TABLE run_events_first"))
        sql.execute(text(f"SET LOCAL role = {make_url(owned).username}"))
        sql.execute(
            text(
                "CREATE TABLE run_events_past PARTITION OF run_events"
                f" FOR VALUES FROM (MINVALUE) TO ('{past}')"
            )
        )
        sql.execute(text("SET LOCAL role = postgres; SET LOCAL session_replication_role = replica"))
        old = partitions.bound(datetime.now(UTC) - timedelta(days=3))
        sql.execute(
            text(
                "INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id,"
                " route_id, model, position, state, queued_at)"
                " VALUES (:id, :id, :id, :id, '', '', '', '', 1, 'completed', now())"
            ),
            {"id": old},
        )

    drop = "SELECT drop_run_events_partition('run_events_past')"
    with psycopg.connect(service.replace("+psycopg", "", 1)) as session:
        session.execute("SELECT set_config('arkloop.orgs', %s, true)", [orgs])
        kept = session.execute(drop).fetchone()
        with walls.owner(owned) as engine, engine.begin() as sql:
            sql.execute(text("SET LOCAL session_replication_role = replica"))
            sql.execute(text("DELETE FROM runs"))
        dropped = session.execute(drop).fetchone()
        left = session.execute("SELECT current_setting('arkloop.orgs')").fetchone()
    assert ((False,), (True,), (orgs,)) == (kept, dropped, left)


@pytest.mark.parametrize("is_apart", [True, False])
def test_functions_that_a_restore_has_opened_to_all_are_closed(owned: str, is_apart: bool) -> None:
    """A dump takes them from everybody in the statement that grants them to the service's role,
    which fails where there is no such role.
    """
    service = service_of(owned) if is_apart else owned
    assert 0 == migrate(owned, service).exit_code
    with walls.owner(owned) as engine, engine.begin() as sql:
        names = ", ".join(service_role.FUNCTIONS)
        sql.execute(text(f"GRANT EXECUTE ON FUNCTION {names} TO PUBLIC"))
        opened = service_role.open_to_all(sql)

    assert 0 == migrate(owned, service).exit_code

    with walls.owner(owned) as engine, engine.begin() as sql:
        role = make_url(service).username
        left = service_role.open_to_all(sql), service_role.barred(sql, opened, role)
    assert ([*service_role.FUNCTIONS], ([], [])) == (opened, left)


def test_a_role_that_cannot_close_functions_is_refused(owned: str) -> None:
    """Postgres only warns when the service revokes what the owner has granted."""
    service = service_of(owned)
    assert 0 == migrate(owned, service).exit_code
    with walls.owner(owned) as engine, engine.begin() as sql:
        sql.execute(text("GRANT EXECUTE ON FUNCTION admit_run_events TO PUBLIC"))

    env = {"ARKLOOP_OWNER_DATABASE_URL": "", "ARKLOOP_DATABASE_URL": service}
    refused = CliRunner().invoke(main, ["migrate"], env=env)

    assert 1 == refused.exit_code, refused.output
    assert "every role of the database may execute admit_run_events, and" in refused.output
    assert f"run this as {make_url(owned).username}," in refused.output
    assert 0 == migrate(owned, service).exit_code


def test_a_second_role_takes_the_place_of_the_service_s(owned: str) -> None:
    """The statements of the guide, with which no process has to stop for another password."""
    guide = (ROOT / "docs/how-to/operations.md").read_text()
    [section] = re.findall(r"^## Rotating the passwords .*?^## ", guide, re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^ *```sql\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)
    first = str(make_url(service_of(owned)).username)
    second = walls.as_user(owned, f"{first}_2")
    create, remove = (block.replace("arkloop_service", first) for block in blocks)
    assert 0 == migrate(owned, service_of(owned)).exit_code

    with walls.owner(owned) as engine, engine.begin() as sql:
        sql.execute(text(create))
    done = migrate(owned, second)
    with walls.owner(owned) as engine:
        with pytest.raises(InternalError, match="cannot be dropped"), engine.begin() as sql:
            sql.execute(text(f"DROP ROLE {first}"))
        with engine.begin() as sql:
            sql.execute(text(remove))
            role, former = (service_role.find(sql, name) for name in (f"{first}_2", first))
            has_all = service_role.has_all(sql, f"{first}_2")

    assert 0 == done.exit_code, done.output
    assert role is not None and not role.owns_tables and not role.is_above_policies
    assert (None, True) == (former, has_all)
