"""The counts of runs that are kept for orgs with many: never too low, and soon forgotten."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared import times
from arkloop.shared.errors import RunLimitExceeded
from arkloop.shared.ids import new_id
from arkloop.shared.runs import creation
from arkloop.shared.runs.creation import RunCreator
from arkloop.shared.storage.connections import Connections
from tests import walls
from tests.shared.runs.test_run_limits import Limited, limited, refusal, wanted
from tests.stored_runs import StoredRuns
from tests.waiting import in_parallel

__all__ = ["limited"]

#: Copies of a run, each in a thread of its own.
COPIES = text("""
WITH opened AS (
    INSERT INTO threads (id, org_id, created_by_user_id)
    SELECT gen_random_uuid(), org_id, created_by_user_id
    FROM runs, generate_series(1, :count) WHERE id = :id RETURNING id
)
INSERT INTO runs SELECT (jsonb_populate_record(
    r, jsonb_build_object('id', gen_random_uuid(), 'thread_id', opened.id)
)).*
FROM runs r, opened WHERE r.id = :id
""")


def change(of: StoredRuns, statement: str, **values: Any) -> None:
    with of.connections.transaction() as tx:
        tx.sql.execute(text(statement), {"org_id": of.actor.org_id, **values})


def copy(of: StoredRuns, count: int, run_id: UUID | None = None) -> None:
    """Let the org have more runs, copies of this one or of a new one, which is one of them."""
    run_id = run_id or creation_of(of)
    for first in range(1, count, 100):
        change(of, str(COPIES), id=run_id, count=min(100, count - first))


def creation_of(of: StoredRuns) -> UUID:
    with of.connections.transaction() as tx:
        return creation.create(tx, wanted(of)).run_id


def let_end(of: StoredRuns, count: int) -> None:
    """End this many of the org's runs."""
    change(
        of,
        "UPDATE runs SET state = 'cancelled', ended_at = now() WHERE id IN (SELECT id FROM runs"
        " WHERE org_id = :org_id AND ended_at IS NULL LIMIT :count)",
        count=count,
    )


def age(of: StoredRuns, seconds: float) -> None:
    """Make the kept count older."""
    change(
        of,
        "UPDATE counted_runs SET counted_at = clock_timestamp() - make_interval(secs => :seconds)"
        " WHERE org_id = :org_id",
        seconds=seconds,
    )


def kept(of: StoredRuns) -> int | None:
    with of.connections.reading() as sql:
        query = text("SELECT unended FROM counted_runs WHERE org_id = :org_id")
        return sql.scalar(query, {"org_id": of.actor.org_id})


@pytest.fixture
def hour(connections: Connections) -> Iterator[None]:
    """Counts that are kept for an hour: a test may take the second that they are kept for."""
    with walls.owner(connections.settings.database_url) as engine:
        with engine.begin() as sql:
            made = sql.scalar(text("SELECT pg_get_functiondef('run_refusals'::regproc)")) or ""
            assert 1 == made.count("interval '1 second'")
            sql.exec_driver_sql(made.replace("interval '1 second'", "interval '1 hour'"))
        yield
        with engine.begin() as sql:
            sql.exec_driver_sql(made)


@pytest.mark.usefixtures("hour")
def test_many_runs_are_counted_once_a_second(limited: Limited) -> None:
    """Meanwhile what is admitted is added; those that came in another way are found by the next
    count.
    """
    copy(limited(), 600)
    of = limited(org_concurrent_runs=700)
    assert refusal(of, wanted(of)) is None
    assert 601 == kept(of)

    copy(limited(), 200)
    age(of, 1800)
    assert refusal(of, wanted(of)) is None
    assert 602 == kept(of)

    age(of, 3601)
    assert refusal(of, wanted(of)) is not None
    assert 802 == kept(of)


def test_of_few_runs_no_count_is_kept(limited: Limited) -> None:
    """Counting them costs less than writing down how many they are."""
    of = limited(org_concurrent_runs=700)
    copy(of, 400)
    assert refusal(of, wanted(of)) is None
    assert kept(of) is None


def test_of_64_callers_as_many_as_may_create_a_run_beside_many(limited: Limited) -> None:
    """Through two processes, for two keys, and while runs end: none beyond a limit."""
    copy(limited(), 600)
    of = limited(org_concurrent_runs=630, key_concurrent_runs=12)
    keys = [new_id() for _ in range(2)]
    creators = [RunCreator(of.connections, of.catalog()) for _ in range(2)]

    def call(number: int) -> UUID | str | None:
        key = keys[number % 2] if number % 8 else None
        new = wanted(of, actor=replace(of.actor, api_key_id=key))
        try:
            creators[number % 3 % 2](new)
        except RunLimitExceeded as refused:
            return str(refused.details["scope"])
        return key

    made = Counter(in_parallel(64, call))

    assert {keys[0]: 12, keys[1]: 12, None: 6, "org": 2, "key": 32} == {
        **made,
        "org": made["org"] + made["key"] - 32,
        "key": 32,
    }


def test_room_is_found_when_runs_have_ended(limited: Limited) -> None:
    """A refusal is as old as a tenth of a second at most."""
    of = limited(org_concurrent_runs=600)
    copy(of, 600)
    assert refusal(of, wanted(of)) is not None
    let_end(of, 1)

    age(of, 0.2)
    assert refusal(of, wanted(of)) is None
    assert refusal(of, wanted(of)) is not None


def test_a_group_that_is_counted_again_is_counted_as_a_whole(limited: Limited) -> None:
    """Runs before the one that exceeded the kept count are counted once."""
    of = limited(org_concurrent_runs=603)
    copy(of, 598)
    assert refusal(of, wanted(of)) is None
    let_end(of, 3)
    age(of, 0.2)

    with of.connections.statement() as tx:
        made = creation.create_within_limits(tx, [wanted(of) for _ in range(10)])

    assert [True] * 7 + [False] * 3 == [isinstance(one, UUID) for one in made]
    assert 603 == kept(of)


@pytest.mark.parametrize("state", ["waiting", "executing"])
def test_runs_that_are_queued_again_count_at_once(limited: Limited, state: str) -> None:
    """The limit on queued runs is not judged by a kept count that they are missing in."""
    run_id = creation_of(limited())
    change(limited(), f"UPDATE runs SET state = '{state}' WHERE id = :id", id=run_id)
    copy(limited(), 600, run_id)
    of = limited(org_queued_runs=5)
    assert refusal(of, wanted(of)) is None

    change(
        of,
        "UPDATE runs SET state = 'queued' WHERE id IN (SELECT id FROM runs"
        " WHERE org_id = :org_id AND ended_at IS NULL LIMIT 5)",
    )

    assert {"limit": "queued_runs", "scope": "org", "most": 5} == refusal(of, wanted(of))


def test_a_count_that_became_small_has_later_runs_of_each_key(limited: Limited) -> None:
    """As long as a count is kept, nothing is admitted that is not in it."""
    of = limited(org_concurrent_runs=502, key_concurrent_runs=3)
    copy(limited(), 500)
    assert refusal(of, wanted(of)) is None
    let_end(of, 501)
    key = replace(of.actor, api_key_id=new_id())

    assert refusal(of, wanted(of, actor=key)) is None
    age(of, 0.2)
    assert refusal(of, wanted(of, actor=key)) is None
    assert refusal(of, wanted(of, actor=key)) is None
    refused = refusal(of, wanted(of, actor=key))

    assert {"limit": "concurrent_runs", "scope": "key", "most": 3} == refused


def test_a_refused_request_keeps_the_count(limited: Limited) -> None:
    """A refused request that needs a transaction keeps it, too: a flood costs no counts."""
    of = limited(org_concurrent_runs=600)
    copy(of, 600)
    later = times.now() + timedelta(hours=1)

    assert refusal(of, wanted(of, not_before=later)) is not None

    assert 600 == kept(of)


def test_a_count_from_the_future_is_not_used(limited: Limited) -> None:
    """The clock was set back, perhaps by a failover to another host."""
    copy(limited(), 600)
    of = limited(org_concurrent_runs=700)
    assert refusal(of, wanted(of)) is None
    copy(limited(), 200)
    age(of, -60)

    assert refusal(of, wanted(of)) is not None
