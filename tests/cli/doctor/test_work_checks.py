"""Messages for workers that stay in the broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from sqlalchemy import text

from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.shared.storage import queue, task_messages
from arkloop.shared.storage.connections import connect_redis
from tests.cli.doctor.examined import Examine, database_of, examine, own_redis, seconds
from tests.stored_runs import StoredRuns, ago

pytestmark = pytest.mark.processes

__all__ = ["examine", "own_redis"]  # fixtures


@contextmanager
def suspended(stored: StoredRuns) -> Iterator[None]:
    """Suspend the org, whose queued runs no worker may start."""
    for time in ("now()", "NULL"):
        with stored.connections.transaction() as tx:
            statement = text(f"UPDATE orgs SET suspended_at = {time} WHERE id = :org")
            tx.sql.execute(statement, {"org": stored.actor.org_id})
        if time != "NULL":
            yield


def test_messages_that_no_worker_takes_are_found(
    examine: Examine, own_redis: EmbeddedRedis, stored: StoredRuns
) -> None:
    """A worker that is alive and listens takes them at once, and none is of use without a run."""
    with database_of(stored), connect_redis(own_redis.url) as broker:
        stored.worker()
        assert [] == examine().of("queue messages")

        list_ = f"{stored.connections.keys.installation}:celery"
        broker.lpush(list_, *(task_messages.message(queue.EXECUTE, uuid4()) for _ in range(3)))
        found = (report := examine()).of("queue messages")
        stored.create()
        while_one_is_queued = examine().of("queue messages")
        with suspended(stored):
            while_its_org_is_suspended = examine().of("queue messages")
            broker.ltrim(list_, -1, -1)
            of_one_alone = examine().of("queue messages")
        broker.delete(list_)

    assert [("warn", "3 messages are left in the broker, although no run is queued")] == found
    assert report.advice("queue messages").startswith("Restart the workers")
    assert [] == while_one_is_queued
    assert found == while_its_org_is_suspended
    assert [("warn", "1 message is left in the broker, although no run is queued")] == of_one_alone


def test_runs_that_are_queued_in_the_future_are_found(examine: Examine, stored: StoredRuns) -> None:
    """Postgres' clock was set back, and no process sweeps: the poll does not find them, whatever
    else is queued.
    """
    stored.worker()
    first, other = stored.create(), stored.create()
    found = []
    for ahead in (3600, 0):
        stored.set(first, queued_at=ago(seconds=-ahead))
        stored.set(other, queued_at=ago())
        found += (report := examine()).of("queue")
        if ahead:
            assert "clock was set back" in report.advice("queue")

    assert ["warn", "ok"] == [level for level, _ in found]
    assert found[0][1].startswith("1 of 2 runs ")
    assert 3500 < seconds(found[0][1], r"the last one in ([\d,]+) s") <= 3600
