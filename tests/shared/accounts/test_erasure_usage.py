"""Usage reports after the erasure of a user or an end user."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.accounts import erasure
from arkloop.shared.runs import thread_changes
from arkloop.shared.storage.tables.billing import run_usage
from tests.end_users import ANN, BOB
from tests.stored_runs import USED, StoredRuns


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for the end of access that are over at once."""
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)


def ended(stored: StoredRuns, **columns: Any) -> UUID:
    """End a run with metadata in a thread of its own; returns the id of the thread."""
    claim = stored.claimed()
    stored.set(claim.run_id, metadata={"patient": "John Doe"}, **columns)
    stored.finish(claim)
    return UUID(str(stored.row(claim.run_id)["thread_id"]))


def change(stored: StoredRuns, thread_id: UUID, **changes: Any) -> None:
    with stored.connections.transaction() as tx:
        thread_changes.change(tx, stored.actor, thread_id, **changes)


def used(stored: StoredRuns) -> list[tuple[Any, ...]]:
    columns = (run_usage.c.end_user_id, run_usage.c.metadata, run_usage.c.cost_usd)
    query = select(*columns).where(run_usage.c.org_id == stored.actor.org_id)
    with stored.connections.reading() as sql:
        return [tuple(row) for row in sql.execute(query.order_by(run_usage.c.ended_at))]


@pytest.mark.parametrize("end_user_id", [None, BOB])
def test_usage_of_a_thread_that_got_its_end_user_later_has_no_name(
    stored: StoredRuns, end_user_id: str | None
) -> None:
    """The erasure takes name and metadata off runs from before; those of others keep them."""
    thread_id = ended(stored, end_user_id=end_user_id)
    ended(stored)
    change(stored, thread_id, end_user_id=ANN)

    erasure.erase_end_user(stored.connections, stored.actor.org_id, ANN)

    other = (None, {"patient": "John Doe"}, USED.cost_usd)
    assert [(None, {}, USED.cost_usd), other] == used(stored)


def test_usage_of_an_erased_users_private_threads_has_no_name(stored: StoredRuns) -> None:
    """It names no end user either; shared threads stay the org's, with all of their usage."""
    change(stored, ended(stored, end_user_id=BOB), is_private=True)
    ended(stored, end_user_id=BOB)

    erasure.erase_user(stored.connections, stored.actor.user_id)

    shared = (BOB, {"patient": "John Doe"}, USED.cost_usd)
    assert [(None, {}, USED.cost_usd), shared] == used(stored)
