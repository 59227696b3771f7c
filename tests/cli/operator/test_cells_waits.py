"""The waits of `arkloop orgs copy`."""

import subprocess
import sys
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update

from arkloop.shared.runs import sweep
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import orgs
from tests.full_org import Run, contents, environ
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually

pytestmark = pytest.mark.processes


def test_what_is_under_way_is_waited_for(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """A run that is executed has to end first."""
    with connections.transaction() as tx:
        executing = text("UPDATE runs SET state = 'executing' WHERE org_id = :org")
        tx.sql.execute(executing, {"org": org_id})

    refused = run("copy", "--wait", "0")

    assert (1, []) == (refused.exit_code, contents(target, org_id)["orgs"])
    assert "Still under way: runs that are executed" in refused.output


def test_a_sweep_of_before_is_waited_for(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """It has not seen that the org leaves, and could end a run that is copied as one that waits."""
    with connections.transaction() as tx:
        tx.sql.execute(select(func.pg_advisory_xact_lock(sweep.LOCK_KEY)))

        refused = run("copy", "--wait", "0")

    assert (1, []) == (refused.exit_code, contents(target, org_id)["orgs"])
    assert "Still under way: a sweep" in refused.output


def test_an_org_that_is_resumed_while_the_copy_waits_is_not_copied(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """Its row would be that of an open org, in both cells."""
    set_state = text("UPDATE runs SET state = :state WHERE org_id = :org")
    with connections.transaction() as tx:
        tx.sql.execute(set_state, {"state": "executing", "org": org_id})
    command = [sys.executable, "-m", "arkloop.cli", "orgs", "copy", "--org", str(org_id)]
    with subprocess.Popen(command, env=environ(connections, target), stderr=subprocess.PIPE) as cli:
        try:
            eventually(lambda: has_left(connections, org_id))
            assert 0 == run("resume", "--despite-copy").exit_code
            with connections.transaction() as tx:
                tx.sql.execute(set_state, {"state": "waiting", "org": org_id})
            _, errors = cli.communicate(timeout=60)
        finally:
            cli.kill()

    assert (1, []) == (cli.returncode, contents(target, org_id)["orgs"])
    assert b"It was resumed meanwhile. Nothing was copied." in errors


def has_left(connections: Connections, org_id: UUID) -> bool:
    with connections.reading() as sql:
        query = text("SELECT moved_to IS NOT NULL FROM orgs WHERE id = :org")
        return bool(sql.scalar(query, {"org": org_id}))


def test_requests_of_before_the_suspension_are_waited_for(
    run: Run, connections: Connections, target: Connections, org_id: UUID
) -> None:
    """A web process may still accept the org's credentials, and wait for a body."""
    with connections.transaction() as tx:
        just_now = text("UPDATE orgs SET suspended_at = now() WHERE id = :org")
        tx.sql.execute(just_now, {"org": org_id})

    refused = run("copy", "--wait", "0")

    assert (1, []) == (refused.exit_code, contents(target, org_id)["orgs"])
    assert "Still under way: requests of before the suspension" in refused.output


def test_a_cancelled_run_that_no_worker_holds_ends_before_the_org_leaves(
    run: Run, target: Connections, stored: StoredRuns
) -> None:
    """A sweep ends it, which does so no more once the org has left. Its key was revoked, say."""
    run_id, org_id = stored.create(cancel_requested_at=ago(seconds=60)), stored.actor.org_id
    suspend(stored)

    refused = run("copy", "--org", str(org_id), "--wait", "0")
    sweep.sweep(stored.connections)
    state = stored.state(run_id)
    done = run("copy", "--org", str(org_id), "--wait", "0")

    assert 1 == refused.exit_code
    assert "Still under way: runs that are being cancelled" in refused.output
    assert ("cancelled", 0) == (state, done.exit_code), done.output


def test_a_run_that_was_to_be_cancelled_when_its_org_left_ends(
    run: Run, target: Connections, stored: StoredRuns
) -> None:
    """The command ends it: an earlier call was stopped, say, and no sweep does."""
    run_id, org_id = stored.create(cancel_requested_at=ago(seconds=60)), stored.actor.org_id
    with target.reading() as sql:
        epoch = sql.scalar(text("SELECT epoch FROM installation"))
    suspend(stored, moved_to=epoch)

    done = run("copy", "--org", str(org_id), "--wait", "0")

    assert (0, "cancelled") == (done.exit_code, stored.state(run_id)), done.output
    assert contents(stored.connections, org_id) == contents(target, org_id)


def suspend(stored: StoredRuns, **columns: object) -> None:
    """Suspend the org as long ago as no request of before can be under way."""
    of_org = update(orgs).where(orgs.c.id == stored.actor.org_id)
    with stored.connections.transaction() as tx:
        tx.sql.execute(of_org.values(suspended_at=ago(seconds=60), **columns))
