"""Conversations of an end user: which threads belong to them."""

from sqlalchemy import update

from arkloop.shared.runs import personal_data
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import threads
from tests.shared.runs.delegated_runs import delegated, held
from tests.stored_runs import StoredRuns


def test_threads_of_sub_runs_outlive_their_runs(stored: StoredRuns) -> None:
    """Threads on all levels are an end user's after the retention has deleted the runs."""
    root = stored.claimed()
    child = delegated(stored, root)
    grandchild = delegated(stored, held(stored, child.run_id))
    thread_id = stored.row(root.run_id)["thread_id"]
    expected = sorted([thread_id, child.thread_id, grandchild.thread_id])
    of_org = runs.c.org_id == stored.actor.org_id
    with stored.connections.transaction() as tx:
        named = update(threads).where(threads.c.id == thread_id).values(end_user_id="ann")
        tx.sql.execute(named)

    def found() -> list[object]:
        with stored.connections.reading() as sql:
            return [*personal_data.of_end_user(sql, stored.actor.org_id, "ann").thread_ids]

    assert expected == found()
    with stored.connections.transaction() as tx:
        assert 3 == tx.sql.execute(runs.delete().where(of_org)).rowcount
    assert expected == found()
