"""Orgs that come back to a cell which has added to what they had left behind."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import insert, select, text

from arkloop.cli.main import main
from arkloop.shared.accounts import erasure
from arkloop.shared.audit import audit_log
from arkloop.shared.audit.audit_log import UNKNOWN, NewEntry
from arkloop.shared.billing import credits
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables import metadata
from arkloop.shared.storage.tables.billing import ledger_entries
from arkloop.shared.times import now, rfc3339
from tests.full_org import AT, Run, contents

#: Calls `arkloop orgs copy` at the target, to the first cell, after a suspension there.
Return = Callable[[], Result]


@pytest.fixture
def left(run: Run, connections: Connections, org_id: UUID) -> Run:
    """An org that is resumed in the other cell, with right books."""
    with connections.transaction() as tx:
        credits.grant(tx, org_id, 101, "paid")
        right = "UPDATE credit_balances SET balance = 100 WHERE org_id = :org"
        tx.sql.execute(text(right), {"org": org_id})
    assert 0 == run("copy").exit_code
    return run


@pytest.fixture
def come_back(run: Run, connections: Connections, target: Connections) -> Return:
    def come_back() -> Result:
        assert 0 == run("suspend", "--reason", "It comes back.", at=target).exit_code
        with target.transaction() as tx:
            tx.sql.execute(text("UPDATE orgs SET suspended_at = :at"), {"at": AT})
        return run("copy", "--to", connections.settings.database_url, at=target)

    return come_back


def fail_to_log_in(connections: Connections, org_id: UUID, count: int) -> None:
    failed = NewEntry(org_id=org_id, action="auth.login_failed", by=UNKNOWN)
    for _ in range(count):
        with connections.transaction() as tx:
            audit_log.append(tx, failed)


def charge(connections: Connections, org_id: UUID, amount: int) -> None:
    """Charge the end of the org's run, as each cell does by itself."""
    with connections.transaction() as tx:
        run_id = tx.sql.scalar(text("SELECT id FROM runs WHERE org_id = :org"), {"org": org_id})
        values = {"id": new_id(), "org_id": org_id, "kind": "usage", "run_id": run_id}
        accounts = {"debit_account": "receivable", "credit_account": "revenue", "credits": amount}
        tx.sql.execute(insert(ledger_entries).values(**values, **accounts))


def log(connections: Connections, org_id: UUID) -> list[Any]:
    query = "SELECT * FROM audit_entries WHERE org_id = :org ORDER BY seq"
    with connections.reading() as sql:
        return list(sql.execute(text(query), {"org": org_id}))


@pytest.mark.parametrize("count", [1, 9])
def test_entries_of_the_audit_log_that_were_added_here_are_appended_again(
    left: Run,
    come_back: Return,
    connections: Connections,
    target: Connections,
    org_id: UUID,
    count: int,
) -> None:
    """They follow those of the other cell, fewer or more, and the chain has no break."""
    fail_to_log_in(connections, org_id, count)
    assert 0 == left("suspend", "--reason", "A restore.").exit_code
    added = log(connections, org_id)[-count - 1 :]
    assert 0 == left("resume", at=target).exit_code
    assert 0 == left("erase", "--yes").exit_code

    done = come_back()

    assert 0 == done.exit_code, done.output
    entries, there = log(connections, org_id), log(target, org_id)
    assert there == entries[: len(there)]
    again = entries[len(there) :]
    assert ["auth.login_failed"] * count + ["org.suspended"] == [one.action for one in again]
    assert [one.seq for one in added] == [one.details["former_seq"] for one in again]
    assert "A restore." == again[-1].details["reason"]
    for before, after in pairwise(entries):
        assert (before.seq + 1, before.hash) == (after.seq, after.prev_hash)
    with connections.reading() as sql:
        assert (again[-1].seq, again[-1].hash) == audit_log.head(sql, org_id)
    assert 0 == left("resume").exit_code


def test_entries_that_were_added_here_survive_a_pruning_in_the_other_cell(
    left: Run, come_back: Return, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """They come back, though nothing there is as old; what was pruned there does not."""
    pruned = log(connections, org_id)
    fail_to_log_in(connections, org_id, 2)
    assert 0 == left("resume", at=target).exit_code
    with target.transaction() as tx:
        assert len(pruned) < audit_log.prune(tx, org_id, now())
    assert 0 == left("erase", "--yes").exit_code

    done = come_back()

    assert 0 == done.exit_code, done.output
    entries, there = log(connections, org_id), log(target, org_id)
    assert there == entries[: len(there)]
    assert "audit.pruned" == there[0].action
    assert ["auth.login_failed"] * 2 == [one.action for one in entries[len(there) :]]


def test_entries_keep_their_first_time_in_each_return(
    left: Run, come_back: Return, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """A second return of the org moves entries that a first one has appended again."""
    fail_to_log_in(connections, org_id, 1)
    failed = log(connections, org_id)[-1]
    assert 0 == left("resume", at=target).exit_code
    assert 0 == left("erase", "--yes").exit_code
    assert 0 == come_back().exit_code
    assert 0 == left("resume", "--despite-copy", at=target).exit_code
    assert 0 == left("erase", "--yes").exit_code

    done = come_back()

    assert 0 == done.exit_code, done.output
    again = log(connections, org_id)[-1]
    former = {"former_seq": failed.seq, "former_created_at": rfc3339(failed.created_at)}
    assert ("auth.login_failed", former) == (again.action, again.details)


def test_movements_of_the_ledger_that_were_made_here_get_contra_entries(
    left: Run, come_back: Return, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """They get them once, also if the org comes back again after a return that was given up."""
    with connections.transaction() as tx:
        credits.grant(tx, org_id, 50, "in the wrong cell")
    charge(connections, org_id, 5)
    assert 0 == left("resume", at=target).exit_code
    charge(target, org_id, 7)

    def back() -> list[Any]:
        assert 0 == left("erase", "--yes").exit_code
        done = come_back()
        assert 0 == done.exit_code, done.output
        with connections.reading() as sql:
            assert org_id not in {wrong for wrong, _, _ in credits.check(sql)}
            assert credits.accounts(sql, org_id) == credits.accounts(target_sql, org_id)
            own = select(ledger_entries).where(ledger_entries.c.org_id == org_id)
            return list(sql.execute(own))

    with target.reading() as target_sql:
        first = back()
    assert 0 == left("resume", "--despite-copy", at=target).exit_code
    with target.reading() as target_sql:
        second = back()

    assert [55] == [sum(one.credits for one in first if (one.note or "").startswith("entered"))]
    assert first == second
    assert 0 == left("resume").exit_code
    at_target = ("--to", connections.settings.database_url)
    assert 0 == left("erase", "--yes", *at_target, at=target).exit_code
    assert 0 == left("suspend", "--reason", "It moves once more.").exit_code
    with connections.transaction() as tx:
        tx.sql.execute(text("UPDATE orgs SET suspended_at = :at"), {"at": AT})
    again = left("copy")
    assert 0 == again.exit_code, again.output
    assert contents(connections, org_id) == contents(target, org_id)


def test_a_run_that_has_ended_here_alone_is_charged_at_its_end_after_the_return(
    left: Run, come_back: Return, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """A cell that was restored has ended it; in the other cell, which has the truth, it waits."""
    charge(connections, org_id, 5)
    assert 0 == left("resume", at=target).exit_code
    assert 0 == left("erase", "--yes").exit_code
    done = come_back()
    assert 0 == done.exit_code, done.output
    assert 0 == left("resume").exit_code

    charge(connections, org_id, 7)

    with connections.reading() as sql, target.reading() as target_sql:
        owed = {"receivable": -7, "revenue": 7}
        before, after = credits.accounts(target_sql, org_id), credits.accounts(sql, org_id)
        assert {name: before.get(name, 0) + owed.get(name, 0) for name in after} == after


def test_users_and_records_of_erasures_here_keep_no_org_away(
    left: Run,
    come_back: Return,
    connections: Connections,
    target: Connections,
    org_id: UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user who was erased as one that was left behind has name and password again."""
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)
    assert 0 == left("resume", at=target).exit_code
    assert 0 == left("erase", "--yes").exit_code
    with target.reading() as sql:
        query = text("SELECT user_id FROM memberships WHERE org_id = :org")
        user_id = sql.scalar(query, {"org": org_id})
    erasure.erase_user(connections, user_id)
    with connections.transaction() as tx:
        record = {"id": new_id(), "kind": "end_user", "org_id": org_id}
        numbers = dict.fromkeys(("threads", "messages", "runs", "files"), 0)
        tx.sql.execute(insert(metadata.tables["erasures"]).values(**record, **numbers))

    done = come_back()

    assert 0 == done.exit_code, done.output
    assert contents(target, org_id)["users"] == contents(connections, org_id)["users"]
    assert 2 == len(contents(connections, org_id)["erasures"])


def test_what_an_operator_does_to_a_left_org_is_refused(
    left: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Its runs are not cancelled or queued, and it is granted nothing, but in the other cell."""
    before = contents(connections, org_id)
    with connections.reading() as sql:
        run_id = sql.scalar(text("SELECT id FROM runs WHERE org_id = :org"), {"org": org_id})

    def call(*words: str) -> Result:
        environ = {"ARKLOOP_DATABASE_URL": connections.settings.database_url}
        return CliRunner().invoke(main, words, env=environ)

    def granted_at(url: str) -> Result:
        words = ("credits", "grant", "--org", str(org_id), "--credits", "5")
        return CliRunner().invoke(main, words, env={"ARKLOOP_DATABASE_URL": url})

    granted = granted_at(connections.settings.database_url)
    others = [call("admin", name, str(run_id)) for name in ("cancel", "requeue")]

    assert 1 == granted.exit_code
    assert "was copied to another cell" in granted.output
    assert 0 == granted_at(target.settings.database_url).exit_code
    for refused in others:
        assert 1 == refused.exit_code
        assert f"{run_id}\tits organization is in another cell" in refused.output
    assert before == contents(connections, org_id)
    assert json.loads(left("show").output)["moved_to"] is not None
