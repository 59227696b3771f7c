"""Changes of long threads to private that another request takes back."""

from uuid import UUID

import pytest
from sqlalchemy import update

from arkloop.shared.errors import Unavailable
from arkloop.shared.runs import visible_runs
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.threads import threads
from tests.clients import Register, User
from tests.shared.runs.test_visible_runs import COUNT, METADATA, LongThread, long_thread, of_org
from tests.stored_runs import StoredRuns


@pytest.fixture
def long(stored: StoredRuns, register: Register, alice: User) -> LongThread:
    return long_thread(stored, register(org_of=alice, role="member"))


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_request_hides_no_run_once_another_has_taken_the_change_back(
    long: LongThread, is_finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client may have given up waiting for it. Nothing would show those runs again."""
    monkeypatch.setattr(visible_runs, "WRITTEN_AT_ONCE", 3)
    batches, hide_some = iter(range(COUNT)), visible_runs._hide_some

    def taken_back(tx: Transaction, thread_id: UUID) -> bool:
        if next(batches) == 2:
            long.change(is_private=False)
            if is_finished:
                visible_runs.finish(long.stored.connections, thread_id)
        return hide_some(tx, thread_id)

    monkeypatch.setattr(visible_runs, "_hide_some", taken_back)
    with pytest.raises(Unavailable, match="kept this thread public"):
        long.hide_ahead()

    assert 3 == next(batches)
    long.sweep()
    assert of_org(long) == long.rows()
    assert not long.due()


def test_runs_that_were_left_hidden_are_seen_again(long: LongThread) -> None:
    """A process of before hid them, while nothing was due, of a thread that stayed public."""
    long.hide_ahead()
    not_due = update(threads).where(threads.c.id == long.id)
    with long.stored.connections.transaction() as tx:
        tx.sql.execute(not_due.values(runs_due_at=None, runs_due_upto=None))

    long.change(is_private=False)
    visible_runs.finish(long.stored.connections, long.id)

    assert of_org(long) == long.rows()
    assert [METADATA, METADATA] == long.reported()[:2]
    assert not long.due()
