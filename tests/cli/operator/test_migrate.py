"""`arkloop migrate` with a role for the service, and with row-level security."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.main import main
from arkloop.shared.accounts import accounts
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import connect
from arkloop.shared.storage.schema import needed_version
from tests import walls
from tests.closed_port import closed_port
from tests.unmigrated import foreign, unmigrated


@dataclass(frozen=True)
class Database:
    """A database, and its URLs for an owner and a service who are no superusers."""

    settings: Settings
    owner: str
    service: str

    def migrate(self, *args: str, service: str | None = None) -> Result:
        env = {
            "ARKLOOP_OWNER_DATABASE_URL": self.owner,
            "ARKLOOP_DATABASE_URL": service or self.service,
        }
        return CliRunner().invoke(main, ["migrate", *args], env=env)

    def count(self, url: str, orgs: str | None = None) -> int:
        """Return how many rows of `orgs` the role of the URL sees."""
        engine = create_engine(url)
        with engine.begin() as sql:
            if orgs is not None:
                sql.execute(text("SELECT set_config('arkloop.orgs', :orgs, true)"), {"orgs": orgs})
            found = sql.scalar(text("SELECT count(*) FROM orgs"))
        engine.dispose()
        return int(found or 0)

    def make_org(self, url: str) -> None:
        opened = connect(replace(self.settings, database_url=url), application="tests-role")
        with opened.transaction() as tx:
            accounts.create_org(tx, "acme")
        opened.close()


def hand_over_functions(sql: Connection, owner: str) -> None:
    """Let the functions that work with their owner's privileges have this one."""
    functions = "SELECT oid::regprocedure::text FROM pg_proc WHERE prosecdef"
    for name in sql.scalars(text(functions)).all():
        sql.execute(text(f"ALTER FUNCTION {name} OWNER TO {owner}"))


@pytest.fixture
def database(new_database: Callable[[], str], settings: Settings) -> Database:
    owner, service = (f"{kind}_{secrets.token_hex(4)}" for kind in ("owner", "service"))
    url = new_database()
    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text(f"CREATE ROLE {owner} LOGIN"))
        sql.execute(text(f"CREATE ROLE {service} LOGIN"))
        sql.execute(text(f"GRANT ALL ON SCHEMA public TO {owner} WITH GRANT OPTION"))
        for name in sql.scalars(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ):
            sql.execute(text(f"ALTER TABLE {name} OWNER TO {owner}"))
        hand_over_functions(sql, owner)
    return Database(settings, walls.as_user(url, owner), walls.as_user(url, service))


@pytest.mark.owner
def test_the_service_needs_not_own_its_tables(database: Database) -> None:
    """Its role reads and writes all of them after each migration, and cannot change them."""
    done = database.migrate()
    assert (0, needed_version()) == (done.exit_code, done.output.strip())

    database.make_org(database.service)
    assert 1 == database.count(database.service), "the wall is not there by itself"
    engine = create_engine(database.service)
    with pytest.raises(ProgrammingError, match="must be owner"), engine.begin() as sql:
        sql.execute(text("ALTER TABLE orgs ADD COLUMN mine text"))
    engine.dispose()


@pytest.mark.parametrize(
    "name", ["ARKLOOP_OWNER_DATABASE_URL", "ARKLOOP_DIRECT_DATABASE_URL", "DATABASE_URL"]
)
def test_a_malformed_url_is_named_by_its_variable(name: str) -> None:
    """The first that is set is the one that is used, and none of the others is to blame."""
    done = CliRunner().invoke(main, ["migrate"], env={name: "mysql://there/runs"})

    assert 1 == done.exit_code
    assert f"Error: {name}: must begin with postgresql" in done.output


def test_no_secret_of_a_url_is_printed() -> None:
    """A failure names the server and the database; passwords can be options, too."""
    port = closed_port()
    secret = "password=hush&sslpassword=hush&oauth_client_secret=hush"
    env = {"ARKLOOP_DATABASE_URL": f"postgresql://ann:hush@127.0.0.1:{port}/runs?{secret}"}

    failed = CliRunner().invoke(main, ["migrate", "--wait", "0"], env=env)

    assert 1 == failed.exit_code
    assert f"Error: Cannot migrate 127.0.0.1:{port}/runs (ARKLOOP_DATABASE_URL): " in failed.output
    assert "hush" not in failed.output


def test_a_malformed_url_of_the_service_is_named_beside_that_of_the_owner(
    database: Database,
) -> None:
    """It is the platform's variable that is wrong: the other one is not set."""
    env = {"ARKLOOP_OWNER_DATABASE_URL": database.owner, "DATABASE_URL": "mysql://there/runs"}
    done = CliRunner().invoke(main, ["migrate"], env=env)

    assert 1 == done.exit_code
    assert "Error: DATABASE_URL: must begin with postgresql" in done.output


def test_the_wall_is_before_the_service_alone(database: Database) -> None:
    """The owner, who makes dumps, sees all rows; it stays with the next migration until it is
    taken down.
    """
    assert 0 == database.migrate("--row-security", "on").exit_code
    database.make_org(database.service)

    for _ in range(2):
        assert (0, 1) == (database.count(database.service), database.count(database.service, "*"))
        assert 1 == database.count(database.owner)
        assert 0 == database.migrate().exit_code
    assert 0 == database.migrate("--row-security", "off").exit_code
    assert 1 == database.count(database.service)


@pytest.mark.owner
def test_the_wall_of_a_newer_schema_stays_up(database: Database) -> None:
    """A rollback with `--row-security on`, as `deploy/compose.walled.yaml` has it, succeeds."""
    assert 0 == database.migrate("--row-security", "on").exit_code
    database.make_org(database.service)
    with walls.owner(database.owner) as engine, engine.begin() as sql:
        sql.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    again = database.migrate("--row-security", "on")

    assert (0, "9999") == (again.exit_code, again.output.strip())
    assert (0, 1) == (database.count(database.service), database.count(database.service, "*"))


@pytest.mark.owner
def test_the_wall_of_a_newer_schema_can_be_taken_down(database: Database) -> None:
    """A release before that of the schema takes it down at once, and refuses to put it up."""
    assert 0 == database.migrate("--row-security", "on").exit_code
    database.make_org(database.service)
    with walls.owner(database.owner) as engine, engine.begin() as sql:
        sql.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    off = database.migrate("--row-security", "off")
    count = database.count(database.service)
    on = database.migrate("--row-security", "on")

    assert (0, "9999", 1) == (off.exit_code, off.output.strip(), count)
    assert 1 == on.exit_code
    assert "the schema is newer than this release" in on.output
    assert 1 == database.count(database.service)


@pytest.mark.parametrize("variable", ["ARKLOOP_OWNER_DATABASE_URL", "ARKLOOP_DIRECT_DATABASE_URL"])
def test_another_database_than_the_services_is_refused(
    postgres: EmbeddedPostgres, variable: str
) -> None:
    """Both are named, and neither is migrated: the service would wait for its schema for good."""
    with unmigrated(postgres) as service, unmigrated(postgres) as other:
        secret = make_url(other).set(password="hush").render_as_string(hide_password=False)
        env = {"ARKLOOP_DATABASE_URL": service, variable: secret}
        done = CliRunner().invoke(main, ["migrate"], env=env)
        tables = [_tables(url) for url in (service, other)]

    assert (1, [0, 0]) == (done.exit_code, tables), done.output
    assert f"/{make_url(other).database} ({variable}) is another database than" in done.output
    assert f"/{make_url(service).database} (ARKLOOP_DATABASE_URL)" in done.output
    assert "hush" not in done.output


def test_another_database_is_refused_where_its_schema_is_newer(
    postgres: EmbeddedPostgres,
) -> None:
    """The version of the wrong database is no success, although nothing would be changed there."""
    with unmigrated(postgres) as service, foreign(postgres, "9999") as other:
        env = {"ARKLOOP_DATABASE_URL": service, "ARKLOOP_OWNER_DATABASE_URL": other}
        done = CliRunner().invoke(main, ["migrate"], env=env)

    assert 1 == done.exit_code
    assert "is another database than" in done.output


def _tables(url: str) -> int:
    engine = create_engine(url)
    with engine.connect() as sql:
        count = sql.scalar(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))
    engine.dispose()
    return int(count or 0)


@pytest.mark.owner
def test_a_service_that_does_not_respond_yet_stops_no_migration(database: Database) -> None:
    """Its pooler may start later: only a database that responds can be known to be another one."""
    elsewhere = make_url(database.service).set(host="127.0.0.1", port=closed_port(), query={})

    done = database.migrate(service=elsewhere.render_as_string(hide_password=False))

    assert (0, needed_version()) == (done.exit_code, done.output.strip())


@pytest.mark.parametrize("stored", ["ae1027a6acf", "3f2a9c01bd44", "001", "0000"])
@pytest.mark.parametrize("args", [[], ["--row-security", "off"]])
def test_the_schema_of_another_application_is_refused(
    postgres: EmbeddedPostgres, stored: str, args: list[str]
) -> None:
    """It uses Alembic, too: the release fails in one line."""
    with foreign(postgres, stored) as url:
        done = CliRunner().invoke(main, ["migrate", *args], env={"ARKLOOP_DATABASE_URL": url})

    assert (1, 1) == (done.exit_code, done.output.count("\n"))
    assert done.output.startswith("Error: Cannot migrate ")
    assert f"has {stored!r}, the version of another application" in done.output


@pytest.mark.owner
def test_tables_of_other_applications_do_not_matter(database: Database) -> None:
    """The schema has one of another owner: the service's role gets no privilege on it."""
    with walls.owner(database.owner) as engine, engine.begin() as sql:
        sql.execute(text('CREATE TABLE "Their Table" (id uuid)'))

    for switch in ("on", "off"):
        assert 0 == database.migrate("--row-security", switch).exit_code
    with walls.owner(database.owner) as engine, engine.begin() as sql:
        sql.execute(text('ALTER TABLE "Their Table" ENABLE ROW LEVEL SECURITY'))
        may_read = """SELECT has_table_privilege(:role, '"Their Table"', 'SELECT')"""
        assert not sql.scalar(text(may_read), {"role": make_url(database.service).username})
    assert 0 == database.migrate("--row-security", "off").exit_code
    with walls.owner(database.owner) as engine, engine.begin() as sql:
        walled = "SELECT relrowsecurity FROM pg_class WHERE relname = 'Their Table'"
        assert sql.scalar(text(walled))


def test_a_service_with_the_owners_role_stands_before_the_wall_too(database: Database) -> None:
    """The owner sees nothing without a word either, and the service works as before."""
    assert 0 == database.migrate("--row-security", "on", service=database.owner).exit_code

    database.make_org(database.owner)
    assert (0, 1) == (database.count(database.owner), database.count(database.owner, "*"))
    # Another role for the service moves the wall.
    assert 0 == database.migrate().exit_code
    assert (1, 0) == (database.count(database.owner), database.count(database.service))


def test_functions_of_another_owner_are_named(database: Database) -> None:
    """Tables were handed over one by one: an error says what else has to be, and that suffices."""
    with walls.owner(database.owner) as engine, engine.begin() as sql:
        hand_over_functions(sql, "postgres")

    for service in (database.service, database.owner):
        found = database.migrate(service=service)
        assert 1 == found.exit_code
        assert "run_events to postgres" in found.output

    with walls.owner(database.owner) as engine, engine.begin() as sql:
        for statement in found.output.rpartition("too: ")[2].split(";"):
            sql.execute(text(statement))
    assert 0 == database.migrate().exit_code


def test_a_role_that_the_wall_does_not_hold_is_named(
    database: Database, new_database: Callable[[], str]
) -> None:
    """A warning for superusers, an error for a role that does not exist."""
    url = new_database()
    env = {"ARKLOOP_DATABASE_URL": walls.as_user(url, "postgres")}
    above = CliRunner().invoke(main, ["migrate", "--row-security", "on"], env=env)
    assert 0 == above.exit_code
    assert "no effect: postgres is a superuser" in above.stderr

    missing = database.migrate(service=walls.as_user(database.service, "nobody_there"))
    assert 1 == missing.exit_code
    assert "Error: ARKLOOP_DATABASE_URL: there is no role 'nobody_there'" in missing.output
    env = {"ARKLOOP_OWNER_DATABASE_URL": database.owner}
    env["DATABASE_URL"] = walls.as_user(database.service, "nobody_there")
    missing = CliRunner().invoke(main, ["migrate"], env=env)
    assert "Error: DATABASE_URL: there is no role 'nobody_there'" in missing.output


@pytest.mark.owner
def test_a_name_that_only_a_pooler_knows_is_that_of_the_owner(database: Database) -> None:
    """A migration through `ARKLOOP_DIRECT_DATABASE_URL` needs no role of that name."""
    env = {
        "ARKLOOP_DATABASE_URL": walls.as_user(database.service, "postgres.project"),
        "ARKLOOP_DIRECT_DATABASE_URL": database.owner,
    }

    done = CliRunner().invoke(main, ["migrate"], env=env)

    assert (0, needed_version()) == (done.exit_code, done.output.strip())


@pytest.mark.owner
def test_privileges_are_for_the_role_of_the_services_sessions(database: Database) -> None:
    """Another role than the URL names gets them, as behind a pooler."""
    service = make_url(database.service).username
    login = f"login_{secrets.token_hex(4)}"
    with walls.owner(database.owner) as engine, engine.begin() as sql:
        sql.execute(text(f"CREATE ROLE {login} LOGIN NOINHERIT IN ROLE {service}"))
        sql.execute(text(f"ALTER ROLE {login} SET role = '{service}'"))

    assert 0 == database.migrate(service=walls.as_user(database.service, login)).exit_code

    assert 0 == database.count(database.service)


@pytest.mark.owner
def test_a_role_that_may_not_migrate_is_an_error_of_one_line(database: Database) -> None:
    """The reason is Postgres' own, without a traceback."""
    with walls.owner(database.owner) as engine, engine.begin() as sql:
        sql.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        sql.execute(text("ALTER TABLE alembic_version OWNER TO postgres"))

    result = database.migrate()

    assert 1 == result.exit_code
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.output.startswith("Error: Cannot migrate ")
    assert "permission denied for table alembic_version" in result.output
    assert 1 == result.output.count("\n")


def test_a_release_without_a_primary_names_each_host() -> None:
    """The last host of the URL may be a standby, beside a primary that is full."""
    ports = [closed_port(), closed_port()]
    url = "postgresql://nobody@127.0.0.1:{},127.0.0.1:{}/nothing".format(*ports)

    failed = CliRunner().invoke(main, ["migrate", "--wait", "0"], env={"ARKLOOP_DATABASE_URL": url})

    assert 1 == failed.exit_code
    for line in failed.stderr.splitlines():
        assert all(f"port {port} failed: Connection refused" in line for port in ports)


@pytest.mark.owner
def test_a_release_does_not_fail_where_partitions_have_to_wait(
    new_database: Callable[[], str],
) -> None:
    """The schema is up to date, and a dump reads the events: a warning says what is left to do."""
    url = new_database()
    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text("DROP TABLE run_events_first"))
        sql.execute(
            text(
                "INSERT INTO run_events SELECT :id, n, 'message.delta', repeat('x', 1500)"
                " FROM generate_series(1, 24000) AS n"
            ),
            {"id": new_id()},
        )
    env = {"ARKLOOP_DATABASE_URL": walls.as_user(url, "postgres")}
    for lock in (
        "LOCK TABLE ONLY run_events_default IN ACCESS SHARE MODE",
        "LOCK TABLE ONLY run_events IN SHARE UPDATE EXCLUSIVE MODE",
    ):
        with walls.owner(url) as engine, engine.begin() as sql:
            sql.execute(text(lock))
            done = CliRunner().invoke(main, ["migrate", "--lock-wait", "0"], env=env)
        assert (0, needed_version()) == (done.exit_code, done.stdout.strip())
        assert "Warning: " in done.stderr

    assert "Made run_events_" in CliRunner().invoke(main, ["migrate"], env=env).stderr


def test_a_retention_beyond_all_dates_is_refused() -> None:
    """The release fails before it has changed the schema: the service would refuse the setting."""
    env = {"ARKLOOP_RETENTION_DAYS": "36501"}

    refused = CliRunner().invoke(main, ["migrate"], env=env)

    assert 2 == refused.exit_code
    assert "--retention-days" in refused.stderr
