"""`arkloop credits`."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Connection, Engine, event, make_url, text, update

from arkloop.cli.operator.credits import credits
from arkloop.shared.accounts import accounts
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.tables.billing import credit_balances
from chaos.system.fault_proxy import FaultProxy
from tests import walls

Run = Callable[..., Result]

#: What the commit of a ledger's entry does.
_AT_COMMIT = """
CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM {}; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON ledger_entries DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION at_commit();
"""


@pytest.fixture
def database(settings: Settings, new_database: Callable[[], str]) -> Iterator[Connections]:
    """A database of the test's own, with the org of the slug `acme` and another org of this
    name.
    """
    connections = connect(replace(settings, database_url=new_database()), application="tests")
    with connections.transaction() as tx:
        accounts.create_org(tx, "acme")
        accounts.create_org(tx, "registered")
        accounts.ensure_org(tx, "acme")
    yield connections
    connections.close()


@pytest.fixture
def run(database: Connections) -> Run:
    """Call it with the words after `arkloop credits`."""

    def run(*words: str, url: str = database.settings.database_url) -> Result:
        env = {"ARKLOOP_DATABASE_URL": url}
        return CliRunner().invoke(credits, words, env=env)

    return run


def shown(run: Run, org: str = "acme") -> dict[str, object]:
    return dict(json.loads(run("show", "--org", org).output))


def test_a_grant_is_entered_and_the_balance_printed(run: Run) -> None:
    """The first makes the org pay in advance; one below zero takes some back."""
    before = shown(run)
    first = run("grant", "--org", "acme", "--credits", "1000", "--note", "invoice 7")
    second = run("grant", "--org", str(before["org_id"]), "--credits", "-300")

    assert [("1000\n", 0), ("700\n", 0)] == [(r.output, r.exit_code) for r in (first, second)]
    assert (None, False, {}) == tuple(before[n] for n in ("balance", "is_prepaid", "accounts"))
    after = shown(run)
    assert (700, 0, True) == tuple(after[n] for n in ("balance", "held", "is_prepaid"))
    assert {"customer": 700, "funding": -700} == after["accounts"]


@pytest.mark.parametrize(
    ("org", "amount", "why"),
    [
        ("acme", "0", "--credits: must be"),
        ("acme", "1000000001", "--credits: must be"),
        ("acme", "-1", "--credits: exceeds"),
        ("nobody", "1", "No organization has the id or slug 'nobody'"),
        ("registered", "1", "Names are not unique"),
        ("01a20e81-4bd5-70da-88f9-366c61169856", "1", "No organization has"),
    ],
)
def test_what_is_wrong_is_said(run: Run, org: str, amount: str, why: str) -> None:
    """It exits with status 1 and a sentence; nothing is entered."""
    refused = run("grant", "--org", org, "--credits", amount)

    assert 1 == refused.exit_code
    assert why in refused.output
    assert None is shown(run)["balance"]


def test_a_balance_that_is_not_its_ledger_is_found(run: Run, database: Connections) -> None:
    """`ok` where the books are right."""
    run("grant", "--org", "acme", "--credits", "10")
    right = run("check")
    with database.transaction() as tx:
        tx.sql.execute(update(credit_balances).values(balance=11))

    wrong = run("check")

    assert ("ok\n", 0) == (right.output, right.exit_code)
    assert 1 == wrong.exit_code
    assert f"{shown(run)['org_id']}\t11\t10\n" in wrong.output


# ---- commits that are not answered -----------------------------------------------------


def at_commit(connections: Connections, expression: str) -> None:
    url = walls.as_user(connections.settings.database_url, "postgres").replace("+psycopg", "", 1)
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(_AT_COMMIT.format(expression))


@pytest.mark.processes
def test_a_grant_whose_answer_is_lost_succeeds(run: Run, database: Connections) -> None:
    """The command looks for the entry, and prints the balance as ever: nobody repeats it."""
    url = make_url(database.settings.database_url)
    with FaultProxy(Path(str(url.query["host"])) / ".s.PGSQL.5432") as proxy:
        proxied = url.set(host="127.0.0.1", port=proxy.port, query={})

        # Not before: a first connection looks for types in a transaction of its own.
        def lose_answer(_: Connection) -> None:
            proxy.cut_answer_to(b"COMMIT")

        event.listen(Engine, "commit", lose_answer)
        try:
            words = ("grant", "--org", "acme", "--credits", "10")
            granted = run(*words, url=proxied.render_as_string(hide_password=False))
        finally:
            event.remove(Engine, "commit", lose_answer)

    assert ("10\n", 0) == (granted.output, granted.exit_code)
    assert {"customer": 10, "funding": -10} == shown(run)["accounts"]


def test_a_grant_whose_commit_fails_is_reported_as_none(run: Run, database: Connections) -> None:
    """Where the transaction has ended without the entry, a repetition grants once."""
    at_commit(database, "pg_terminate_backend(pg_backend_pid())")

    refused = run("grant", "--org", "acme", "--credits", "10")

    assert 1 == refused.exit_code
    assert "Nothing was granted" in refused.output
    assert {} == shown(run)["accounts"]


def test_a_grant_whose_commit_hangs_is_not_called_failed(run: Run, database: Connections) -> None:
    """While the transaction waits, as for a standby, nobody knows: the operator is warned of a
    repetition.
    """
    at_commit(database, "pg_sleep(600)")

    hanging = run("grant", "--org", "acme", "--credits", "10")

    with database.transaction() as tx:
        of_command = "application_name = 'arkloop-cli' AND datname = current_database()"
        tx.sql.execute(
            text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {of_command}")
        )
    assert 1 == hanging.exit_code
    assert "try again" not in hanging.output
    assert "before you repeat the command" in hanging.output
