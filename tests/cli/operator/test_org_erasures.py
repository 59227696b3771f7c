"""`arkloop orgs erase`, orgs that come back, and copies that are given up."""

import json
import re
from pathlib import Path
from uuid import UUID

import psycopg
from sqlalchemy import text

from arkloop.cli.operator import org_erasures, org_rows
from arkloop.shared.billing import credits
from arkloop.shared.storage import rewinds
from arkloop.shared.storage.connections import Connections
from tests.full_org import AT, Run, contents

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "cells.md"


def test_what_is_left_behind_is_erased_once_the_org_is_resumed(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Before that the copy is not in use; rows of other orgs stay, and what is kept for good."""
    never = run("erase", "--yes")
    assert 0 == run("copy").exit_code
    early = run("erase", "--yes")
    assert 0 == run("resume", at=target).exit_code
    others = sum(_counts(connections).values()) - sum(_counts(connections, org_id).values())

    done = run("erase", "--yes")

    assert (1, 1, 0) == (never.exit_code, early.exit_code, done.exit_code)
    assert "It was not copied" in never.output
    assert "It is not resumed" in early.output
    left = contents(connections, org_id)
    assert {"audit_entries", "audit_heads", "erasures", "ledger_entries"} == {
        name for name, rows in left.items() if rows
    }
    stay = sum(map(len, left.values())) + 1  # a user
    assert others + stay == sum(_counts(connections).values())
    with connections.reading() as sql:
        assert 0 == sql.scalar(text("SELECT count(*) FROM forgotten_events"))
    assert [] == [name for name, rows in contents(target, org_id).items() if not rows]


def test_the_ledger_of_an_erased_org_is_no_wrong_balance(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """`arkloop credits check` finds nothing wrong in either cell; the entries stay in both."""
    with connections.transaction() as tx:
        credits.grant(tx, org_id, 100, "paid")
        right = "UPDATE credit_balances SET balance = 99 WHERE org_id = :org"
        tx.sql.execute(text(right), {"org": org_id})
    for done in (run("copy"), run("resume", at=target), run("erase", "--yes")):
        assert 0 == done.exit_code, done.output

    for cell, balance in ((connections, None), (target, 99)):
        with cell.reading() as sql:
            assert org_id not in {wrong for wrong, _, _ in credits.check(sql)}
            assert balance == credits.balance(sql, org_id).balance
            assert 99 == credits.accounts(sql, org_id)["customer"]


def test_an_org_comes_back(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Its audit log continues where the other cell has left it, and events are kept."""
    assert 0 == run("copy").exit_code
    assert 0 == run("resume", at=target).exit_code
    assert 0 == run("erase", "--yes").exit_code
    assert 0 == run("suspend", "--reason", "It comes back.", at=target).exit_code
    with target.transaction() as tx:
        tx.sql.execute(text("UPDATE orgs SET suspended_at = :at"), {"at": AT})
    with target.reading() as sql:
        run_id = sql.scalar(text("SELECT id FROM runs WHERE org_id = :org"), {"org": org_id})
    with connections.transaction() as tx:
        # As if a sweep still had to look for events of the run that was there.
        tx.sql.execute(text("INSERT INTO forgotten_events (run_id) VALUES (:id)"), {"id": run_id})

    done = run("copy", "--to", connections.settings.database_url, at=target)

    assert 0 == done.exit_code, done.output
    assert contents(target, org_id) == contents(connections, org_id)
    with connections.reading() as sql:
        assert 0 == sql.scalar(text("SELECT count(*) FROM forgotten_events"))
    assert 0 == run("resume").exit_code


def test_an_org_that_a_restore_brings_back_is_closed_again(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """What the guide has an operator do leaves the org as the move did: nothing resumes it here."""
    assert 0 == run("copy").exit_code
    assert 0 == run("resume", at=target).exit_code
    with connections.transaction() as tx:
        # As a backup of before the suspension has it.
        open_ = "suspended_at = NULL, suspension_reason = NULL, moved_to = NULL"
        tx.sql.execute(text(f"UPDATE orgs SET {open_} WHERE id = :org"), {"org": org_id})
    with target.reading() as sql:
        epoch = sql.scalar(text("SELECT epoch FROM installation"))
    [closing] = re.findall(r"^```sql\n(.+?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    closing = closing.replace("…", str(epoch)).replace("slug = 'acme'", f"id = '{org_id}'")

    suspended = run("suspend", "--reason", "It is in another cell.")
    with connections.transaction() as tx:
        tx.sql.execute(text(closing))
    resumed = run("resume")
    erased = run("erase", "--yes")

    assert (0, 1, 0) == (suspended.exit_code, resumed.exit_code, erased.exit_code)
    assert "was copied to another cell" in resumed.output
    assert [] == contents(connections, org_id)["runs"]


def _counts(connections: Connections, org_id: UUID | None = None) -> dict[str, int]:
    if org_id is not None:
        return {name: len(rows) for name, rows in contents(connections, org_id).items()}
    with connections.reading() as sql:
        return {
            table.name: sql.scalar(text(f"SELECT count(*) FROM {table.name}")) or 0
            for table in org_rows.tables()
        }


def test_no_reservation_outlives_its_run(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """An erasure that stops at the runs leaves nothing that a sweep would charge."""
    assert 0 == run("copy").exit_code
    assert 0 == run("resume", at=target).exit_code
    with connections.reading() as sql:
        source = sql.connection.driver_connection
        assert isinstance(source, psycopg.Connection)
        for name, count in org_erasures.erase(source, org_id):
            if (name, count) == ("runs", 1):
                break
        reserved = text("SELECT count(*) FROM holds WHERE org_id = :org")
        assert 0 == sql.scalar(reserved, {"org": org_id})


def test_a_copy_that_was_given_up_is_no_copy(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """What the org has done since it was resumed is not there: the copy has to be made anew."""
    assert 0 == run("copy").exit_code
    assert 0 == run("resume", "--despite-copy").exit_code
    work = text("UPDATE runs SET metadata = '{\"late\": 1}' WHERE org_id = :org")
    with connections.transaction() as tx:
        tx.sql.execute(work, {"org": org_id})

    live = run("copy")
    assert 0 == run("suspend", "--reason", "It moves again.").exit_code
    with connections.transaction() as tx:
        tx.sql.execute(text("UPDATE orgs SET suspended_at = :at"), {"at": AT})
    stale = run("copy")

    for refused in (live, stale):
        assert 1 == refused.exit_code
        assert "has an earlier copy of the organization" in refused.output
    this = connections.settings.database_url
    assert 0 == run("erase", "--yes", "--to", this, at=target).exit_code
    again = run("copy")
    assert 0 == again.exit_code, again.output
    assert 1 == json.loads(again.stdout)["rows"]["runs"]
    assert contents(connections, org_id) == contents(target, org_id)


def test_a_move_is_taken_back_before_the_copy_is_resumed(
    run: Run, target: Connections, org_id: UUID
) -> None:
    """The copy is given up expressly; it stays closed until it is erased."""
    assert 0 == run("copy").exit_code

    back = run("resume", "--despite-copy")

    assert 0 == back.exit_code
    state = json.loads(back.output)
    assert (None, None) == (state["suspended_at"], state["moved_to"])
    with target.reading() as sql:
        is_closed = text("SELECT suspended_at IS NOT NULL FROM orgs WHERE id = :org")
        assert sql.scalar(is_closed, {"org": org_id})


def test_a_copy_of_before_another_epoch_is_resumed_expressly(
    run: Run, target: Connections, org_id: UUID
) -> None:
    """The other cell was restored, say; what the org has left is erased as ever."""
    assert 0 == run("copy").exit_code
    with target.transaction() as tx:
        rewinds.rotate(tx.sql)

    refused = run("resume", at=target)
    resumed = run("resume", "--despite-copy", at=target)

    assert 1 == refused.exit_code
    assert "or that was an earlier epoch of this cell: --despite-copy" in refused.output
    assert 0 == resumed.exit_code
    assert 0 == run("erase", "--yes").exit_code
