"""`arkloop audit`."""

from collections.abc import Callable
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from arkloop.cli.main import main
from arkloop.cli.operator.audit import audit
from arkloop.shared.accounts import accounts
from arkloop.shared.audit import audit_log
from arkloop.shared.audit.audit_log import OPERATOR, NewEntry
from arkloop.shared.storage.connections import Connections

Run = Callable[..., Result]


@pytest.fixture
def run(connections: Connections) -> Run:
    """Call it with the words after `arkloop audit`."""

    def run(*words: str) -> Result:
        env = {"ARKLOOP_DATABASE_URL": connections.settings.database_url}
        return CliRunner().invoke(audit, words, env=env)

    return run


@pytest.fixture
def org_id(connections: Connections) -> UUID:
    """An org with two entries."""
    with connections.transaction() as tx:
        org_id = accounts.create_org(tx, "acme")
        for _ in range(2):
            audit_log.append(tx, NewEntry(org_id=org_id, action="api_key.created", by=OPERATOR))
    return org_id


def test_a_good_log_is_ok(run: Run, org_id: UUID) -> None:
    """One org or all can be checked, also against the head that was printed."""
    head = run("head", "--org", str(org_id)).output.strip()

    assert head.startswith("2:")
    for words in (["--org", str(org_id)], ["--org", str(org_id), "--head", head], []):
        checked = run("verify", *words)
        assert 0 == checked.exit_code
        assert f"{org_id}\t2\tok\n" in checked.output


@pytest.mark.owner
def test_the_first_broken_entry_is_printed(
    run: Run, org_id: UUID, connections: Connections
) -> None:
    """The status is 1, and the logs of other orgs are checked all the same."""
    with connections.transaction() as tx:
        tx.sql.execute(text("SET LOCAL session_replication_role = replica"))
        tx.sql.execute(text(f"DELETE FROM audit_entries WHERE org_id = '{org_id}' AND seq = 2"))

    checked = run("verify")

    assert 1 == checked.exit_code
    assert f"{org_id}\t1\tentry 2: missing" in checked.output


def test_old_entries_are_pruned(run: Run, org_id: UUID) -> None:
    """The number of them is printed, and the log stays good."""
    first = run("prune", "--org", str(org_id), "--before", "2020-01-01")
    second = run("prune", "--org", str(org_id), "--before", "9000-01-01")

    assert [("0\n", 0), ("2\n", 0)] == [(done.output, done.exit_code) for done in (first, second)]
    assert f"{org_id}\t1\tok\n" in run("verify").output


def test_what_the_operator_does_is_in_the_log(org_id: UUID, connections: Connections) -> None:
    """Users and credits that a command makes have entries of the actor `operator`."""
    env = {"ARKLOOP_DATABASE_URL": connections.settings.database_url}
    granted = ["credits", "grant", "--org", str(org_id), "--credits", "7"]
    names = ["--login", f"l{org_id}", "--email", f"{org_id}@example.com", "--password", "p" * 9]
    created = ["users", "create", "--org", str(org_id), "--role", "admin", *names]

    for words in (granted, created):
        assert 0 == CliRunner().invoke(main, words, env=env).exit_code

    with connections.reading() as sql:
        rows = audit_log.list_(sql, org_id, {}, limit=2, before=None)
    assert [("user.created", "operator", None), ("credits.granted", "operator", None)] == [
        (row.action, row.actor_type, row.ip) for row in rows
    ]
    assert [{"role": "admin"}, {"credits": 7}] == [row.details for row in rows]


@pytest.mark.parametrize(
    "words",
    [["--head", "1:" + "0" * 64], ["--org", "acme", "--head", "x"], ["--org", "nobody"]],
)
def test_wrong_usage_is_refused(run: Run, org_id: UUID, words: list[str]) -> None:
    """A head belongs to an org and has a form; an unknown org is an error."""
    assert run("verify", *words).exit_code in (1, 2)
