"""Commands that use the database directly, when it cannot be used."""

from collections.abc import Callable
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text

from arkloop.cli.main import main
from arkloop.cli.operator.database import database, place
from arkloop.shared.storage import schema
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.postgres import REQUEST_TIMEOUTS


def listed(url: str) -> Result:
    """Return the result of `arkloop orgs list`."""
    return CliRunner().invoke(main, ["orgs", "list"], env={"ARKLOOP_DATABASE_URL": url})


@pytest.mark.owner
def test_a_database_that_was_never_migrated(new_database: Callable[[], str]) -> None:
    """The message says what to do, and has no cause beside it."""
    url = new_database()
    engine = create_engine(url)
    with engine.begin() as sql:
        sql.execute(text("DROP SCHEMA public CASCADE"))
        sql.execute(text("CREATE SCHEMA public"))
    engine.dispose()

    result = listed(url)

    assert 1 == result.exit_code
    assert (
        "Error: The database schema is empty, but this version requires"
        f" {schema.needed_version()}: run `arkloop migrate`.\n"
    ) == result.output


def test_a_url_from_a_file_ends_with_a_newline(connections: Connections) -> None:
    """The service takes it, and so do these commands."""
    assert 0 == listed(f"{connections.settings.database_url}\n").exit_code


@pytest.mark.parametrize(
    ("options", "env"),
    [
        ([], {"DATABASE_URL": "mysql://there/runs"}),
        (["--database-url", "mysql://there/runs"], {}),
    ],
)
@pytest.mark.parametrize("command", [["list"], ["copy", "--org", "acme", "--to", "postgresql://"]])
def test_a_malformed_url_is_named_by_all_that_may_have_given_it(
    command: list[str], options: list[str], env: dict[str, str]
) -> None:
    """The option comes first, and its variables after it."""
    result = CliRunner().invoke(main, ["orgs", *command, *options], env=env)

    assert 1 == result.exit_code
    named = "--database-url (ARKLOOP_DATABASE_URL, DATABASE_URL)"
    assert f"Error: {named}: must begin with postgresql" in result.output


def test_a_database_that_is_away() -> None:
    """The message has the system's own words."""
    result = listed("postgresql://postgres@127.0.0.1:1/postgres")

    assert 1 == result.exit_code
    assert "Error: The database is unavailable; try again shortly. (" in result.output
    assert "Connection refused" in result.output


def test_a_statement_that_takes_too_long_is_not_shown(connections: Connections) -> None:
    """The message has the reason alone."""
    short, url = replace(REQUEST_TIMEOUTS, statement=0.1), connections.settings.database_url

    with pytest.raises(click.ClickException) as raised, database(url, short) as opened:
        with opened.reading() as sql:
            sql.execute(text("SELECT pg_sleep(5)"))

    assert (
        "The database is unavailable; try again shortly. (canceling statement due to statement"
        " timeout)"
    ) == raised.value.message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:secret@db/runs?sslpassword=secret", "db:5432/runs"),
        ("postgresql:///runs?host=db1:1&host=db2:2", "db1,db2:1,2/runs"),
        ("postgresql:///runs", "localhost:5432/runs"),
        ("postgresql:///runs?hostaddr=10.0.0.5&password=secret", "10.0.0.5:5432/runs"),
        ("postgresql://db/runs?hostaddr=10.0.0.5&port=6432", "db:6432/runs"),
        ("postgresql:///?service=prod", "service prod"),
        ("postgresql:///runs?service=prod", "service prod/runs"),
    ],
)
def test_messages_name_the_server_that_is_connected_to(url: str, shown: str) -> None:
    """An address is one as a name is, and a service has its server in a file."""
    assert shown == place(url)
