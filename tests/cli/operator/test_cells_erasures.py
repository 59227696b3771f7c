"""Erasures of a person while `arkloop orgs copy` is under way, or after it was broken off."""

import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from arkloop.shared.accounts import erasure
from arkloop.shared.accounts.erasure import RunsGoOn
from arkloop.shared.billing import budgets, credits
from arkloop.shared.claim import Claim
from arkloop.shared.events.types import RunCost
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import orgs
from arkloop.shared.storage.tables.billing import ledger_entries
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import threads
from tests.cli.operator.test_cells_waits import has_left, suspend
from tests.end_users import ANN
from tests.full_org import Run, contents, environ
from tests.stored_runs import USED, StoredRuns
from tests.waiting import eventually

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for the end of runs that are over soon."""
    monkeypatch.setattr(erasure, "RUNS_END_SECONDS", 1)
    monkeypatch.setattr(erasure, "ALONE_AFTER_SECONDS", 0)
    monkeypatch.setattr(erasure, "_POLL_ALONE_SECONDS", 0.1)


@pytest.fixture
def anns(stored: StoredRuns) -> Claim:
    """A run of Ann's that is executed, and has cost 500 of the org's credits."""
    with stored.connections.transaction() as tx:
        credits.grant(tx, stored.actor.org_id, 1_000_000)
    claim = stored.claimed()
    persona = stored.catalog().persona(stored.actor.org_id, None)
    with stored.connections.transaction() as tx:
        found = budgets.limits(tx.sql, claim, persona)
        budgets.reserve(tx, claim, found, Decimal(0), Decimal(1))
        of_run = update(threads).where(threads.c.id == claim.thread_id)
        tx.sql.execute(of_run.values(end_user_id=ANN))
    stored.write(claim, RunCost(USED.usage, USED.cost_usd, USED.routes))
    return replace(claim, last_seq=stored.last_seq(claim.run_id))


def erase(stored: StoredRuns) -> dict[str, Any]:
    return erasure.erase_end_user(stored.connections, stored.actor.org_id, ANN)


def charges(connections: Connections, run_id: UUID) -> list[int]:
    of_run = select(ledger_entries.c.credits).where(ledger_entries.c.run_id == run_id)
    with connections.reading() as sql:
        return list(sql.scalars(of_run))


def test_a_run_that_is_executed_while_its_org_leaves_ends_and_is_charged(
    target: Connections, stored: StoredRuns, anns: Claim
) -> None:
    """The copy waits for it, and so does an erasure: its worker is alive."""
    connections, org_id = stored.connections, stored.actor.org_id
    suspend(stored)
    command = [sys.executable, "-m", "arkloop.cli", "orgs", "copy", "--org", str(org_id)]
    at = environ(connections, target)
    with subprocess.Popen(command, env=at, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as cli:
        try:
            eventually(lambda: has_left(connections, org_id))
            with pytest.raises(RunsGoOn):
                erase(stored)
            stored.finish(anns, RunState.CANCELLED)
            _, errors = cli.communicate(timeout=60)
        finally:
            cli.kill()

    assert 0 == cli.returncode, errors
    assert [500] == charges(target, anns.run_id)
    assert contents(connections, org_id) == contents(target, org_id)


def test_a_run_that_waits_ends_with_the_copy_that_is_repeated(
    run: Run, target: Connections, stored: StoredRuns, anns: Claim
) -> None:
    """The erasure deletes nothing before that: no cell would charge what the run has cost."""
    connections, org_id = stored.connections, stored.actor.org_id
    stored.park(anns, new_id())
    another = stored.claimed()
    suspend(stored)
    broken_off = run("copy", "--org", str(org_id), "--wait", "0")
    with pytest.raises(RunsGoOn) as refused:
        erase(stored)
    assert [org_id] == refused.value.org_ids
    assert is_under_way(run, org_id)
    stored.finish(another, RunState.CANCELLED)

    done = run("copy", "--org", str(org_id), "--wait", "0")

    assert not is_under_way(run, org_id)
    assert (1, 0) == (broken_off.exit_code, done.exit_code), done.output
    assert contents(connections, org_id) == contents(target, org_id)
    assert [500] == charges(target, anns.run_id)
    assert 1 == erase(stored)["runs"]


def is_under_way(run: Run, org_id: UUID) -> bool:
    """Return whether the org is shown as one whose copy is not complete."""
    shown = json.loads(run("show", "--org", str(org_id)).output)
    return shown["copy_began_at"] is not None


def test_a_run_that_an_org_has_left_behind_is_deleted_as_it_is(
    run: Run, target: Connections, stored: StoredRuns, anns: Claim
) -> None:
    """The other cell has all of the run, and ends and charges it."""
    connections, org_id = stored.connections, stored.actor.org_id
    stored.park(anns, new_id())
    suspend(stored)
    assert 0 == run("copy", "--org", str(org_id), "--wait", "0").exit_code

    assert 1 == erase(stored)["runs"]

    assert [] == charges(connections, anns.run_id)
    with target.reading() as sql:
        state = select(runs.c.state).where(runs.c.id == anns.run_id)
        assert RunState.WAITING == sql.scalar(state)


@pytest.fixture
def killed_late(run: Run, stored: StoredRuns, anns: Claim) -> UUID:
    """An org whose copy is complete, and marked as one under way: the command died in between."""
    org_id = stored.actor.org_id
    stored.park(anns, new_id())
    suspend(stored)
    assert 0 == run("copy", "--org", str(org_id), "--wait", "0").exit_code
    with stored.connections.transaction() as tx:
        marked = update(orgs).where(orgs.c.id == org_id).values(copy_began_at=func.now())
        tx.sql.execute(marked)
    return org_id


def test_a_copy_that_was_killed_once_it_was_complete_is_so_after_the_repetition(
    run: Run, target: Connections, stored: StoredRuns, killed_late: UUID
) -> None:
    """The repetition copies nothing, and takes the mark off the org."""
    again = run("copy", "--org", str(killed_late), "--wait", "0")

    assert (0, {}) == (again.exit_code, json.loads(again.stdout)["rows"])
    assert contents(stored.connections, killed_late) == contents(target, killed_late)
    assert 1 == erase(stored)["runs"]


def test_a_copy_that_is_in_use_counts_as_complete_after_the_repetition(
    run: Run, target: Connections, stored: StoredRuns, killed_late: UUID
) -> None:
    """The repetition is refused, as always, and takes the mark off the org nevertheless."""
    resumed = run("resume", "--org", str(killed_late), at=target)
    with pytest.raises(RunsGoOn):
        erase(stored)

    again = run("copy", "--org", str(killed_late), "--wait", "0")

    assert (0, 1) == (resumed.exit_code, again.exit_code)
    assert 1 == erase(stored)["runs"]
