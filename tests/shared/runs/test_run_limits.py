"""The limits on runs of an org and of an API key."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared import times
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.errors import RunLimitExceeded, Unavailable
from arkloop.shared.ids import new_id
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.runs import commands, creation, run_limits
from arkloop.shared.runs.creation import NewMessage, NewRun, NewThread, RunCreator
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.connections import Connections
from arkloop.shared.threads.content import Content
from tests.clients import User
from tests.query_plans import noted
from tests.stored_runs import StoredRuns
from tests.waiting import in_parallel

Limited = Callable[..., StoredRuns]


@pytest.fixture
def limited(stored: StoredRuns) -> Limited:
    """Call it for the same org under other settings."""

    def new(**settings: Any) -> StoredRuns:
        changed = replace(stored.connections.settings, **settings)
        return replace(stored, connections=replace(stored.connections, settings=changed))

    return new


def wanted(of: StoredRuns, thread_id: UUID | None = None, **fields: Any) -> NewRun:
    """Return a run in this thread, or in a new one."""
    base = NewRun(
        actor=of.actor,
        thread_id=thread_id or new_id(),
        thread=None if thread_id else NewThread(),
        message=NewMessage(content=Content("Hi")),
        persona=personas.builtin()["assistant@1"],
        route=model_routes.load(of.connections.settings)["scripted"],
        trace_id="1" * 32,
    )
    return replace(base, **fields)


def refusal(of: StoredRuns, new: NewRun) -> dict[str, Any] | None:
    """Return why the run is refused, None if it is created."""
    try:
        RunCreator(of.connections, of.catalog())(new)
    except RunLimitExceeded as refused:
        return dict(refused.details)
    return None


def test_of_64_callers_as_many_as_may_create_a_run(limited: Limited) -> None:
    """Through two processes, in groups and in transactions of their own, in new threads and old."""
    of = limited(org_concurrent_runs=20)
    creators = [RunCreator(of.connections, of.catalog()) for _ in range(2)]
    threads = [of.thread() for _ in range(64)]

    def call(number: int) -> bool:
        new = wanted(of, threads[number] if number % 4 < 2 else None)
        try:
            if number % 3 == 0:
                with of.connections.transaction() as tx:
                    creation.create(tx, new)
            else:
                creators[number % 2](new)
        except RunLimitExceeded:
            return False
        return True

    assert {True: 20, False: 44} == Counter(in_parallel(64, call))


def test_a_key_has_a_limit_of_its_own(limited: Limited) -> None:
    """What one key has under way leaves the org's other keys and people their own."""
    of = limited(key_concurrent_runs=1, org_concurrent_runs=3)
    keys = [replace(of.actor, api_key_id=new_id()) for _ in range(2)]

    assert refusal(of, wanted(of, actor=keys[0])) is None
    of_key = {"limit": "concurrent_runs", "scope": "key", "most": 1}
    assert of_key == refusal(of, wanted(of, actor=keys[0]))
    assert refusal(of, wanted(of, actor=keys[1])) is None
    assert refusal(of, wanted(of)) is None
    of_org = {"limit": "concurrent_runs", "scope": "org", "most": 3}
    assert of_org == refusal(of, wanted(of))


@pytest.mark.parametrize(
    "state", [RunState.QUEUED, RunState.EXECUTING, RunState.WAITING, RunState.SUSPENDED]
)
def test_a_run_counts_until_it_ends(
    limited: Limited, make_run: Callable[..., UUID], alice: User, state: RunState
) -> None:
    """Each state counts; the end makes room."""
    of = limited(org_concurrent_runs=1)
    make_run(alice, str(of.thread()), state)
    assert refusal(of, wanted(of)) is not None

    ended = text("UPDATE runs SET state = 'completed', ended_at = now() WHERE org_id = :org_id")
    with of.connections.transaction() as tx:
        tx.sql.execute(ended, {"org_id": of.actor.org_id})

    assert refusal(of, wanted(of)) is None


@pytest.mark.parametrize("on_busy", [OnBusy.ENQUEUE, OnBusy.STEER])
def test_what_waits_for_its_thread_counts(limited: Limited, on_busy: OnBusy) -> None:
    """A pending run, and a message that may become a run."""
    of = limited(org_concurrent_runs=3)
    thread_id = of.thread()

    asked = [refusal(of, wanted(of, thread_id, on_busy=on_busy)) for _ in range(4)]

    assert [True, True, True, False] == [why is None for why in asked]


def test_what_waits_for_its_time_counts(limited: Limited) -> None:
    """Its time comes without a request that could be refused."""
    of = limited(org_concurrent_runs=1)
    later = times.now() + timedelta(hours=1)
    assert refusal(of, wanted(of, not_before=later)) is None

    assert refusal(of, wanted(of)) is not None


def test_the_queue_has_a_limit(limited: Limited) -> None:
    """A run that a worker has claimed makes room, while it executes."""
    of = limited(org_queued_runs=2)
    assert [None, None] == [refusal(of, wanted(of)) for _ in range(2)]
    full = {"limit": "queued_runs", "scope": "org", "most": 2}
    assert full == refusal(of, wanted(of))

    of.claim(of.sent[0])

    assert refusal(of, wanted(of)) is None
    assert full == refusal(of, wanted(of))


def test_other_orgs_and_sub_runs_do_not_count(
    limited: Limited, make_run: Callable[..., UUID], alice: User, register: Callable[..., User]
) -> None:
    """A sub-run belongs to the run that has started it."""
    of = limited(org_concurrent_runs=1)
    make_run(alice, str(of.thread()), parent_run_id=new_id())
    other = register()
    make_run(other, other.thread())

    assert refusal(of, wanted(of)) is None


def test_a_transaction_that_dies_leaves_nothing_that_counts(limited: Limited) -> None:
    """Neither a run nor the lock: the next request does not even wait."""
    of = limited(org_concurrent_runs=1)
    with pytest.raises(Unavailable), of.connections.transaction() as tx:
        creation.create(tx, wanted(of))
        own = tx.sql.scalar(text("SELECT pg_backend_pid()"))
        with of.connections.reading() as sql:
            sql.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
        tx.sql.execute(text("SELECT pg_sleep(1)"))

    assert refusal(of, wanted(of)) is None


def test_a_retry_counts(limited: Limited) -> None:
    """It is a run like any other."""
    of = limited(org_concurrent_runs=1)
    thread_id = of.thread()
    assert refusal(of, wanted(of, thread_id)) is None
    with of.connections.transaction() as tx:
        commands.cancel(tx, of.actor, of.sent[0])
    assert refusal(of, wanted(of)) is None

    with pytest.raises(RunLimitExceeded), of.connections.transaction() as tx:
        creation.retry(tx, of.actor, thread_id, of.catalog(), trace_id="1" * 32)


def test_of_a_group_each_run_counts_for_those_behind_it(
    limited: Limited, connections: Connections, register: Callable[..., User]
) -> None:
    """One statement applies the limits of each; refused runs do not count."""
    of = limited()
    other = StoredRuns.of(connections, register()).actor
    limits = OrgLimits(key_concurrent_runs=2, org_concurrent_runs=4, org_queued_runs=9)
    member = replace(of.actor, limits=limits)
    one, two = (replace(member, api_key_id=new_id()) for _ in range(2))
    actors = [one, other, one, one, two, member, two, other, one, member]

    with of.connections.statement() as tx:
        group = [wanted(of, actor=actor) for actor in actors]
        made = creation.create_within_limits(tx, group)

    refused = {
        number: (why.details["scope"], why.details["most"])
        for number, why in enumerate(made)
        if isinstance(why, RunLimitExceeded)
    }
    assert {3: ("key", 2), 6: ("org", 4), 8: ("key", 2), 9: ("org", 4)} == refused
    assert 6 == len(of.sent) == sum(isinstance(run_id, UUID) for run_id in made)
    ids = [new.thread_id for new in group]
    with connections.reading() as sql:
        count = text("SELECT count(*) FROM threads WHERE id = ANY(:ids)")
        assert 6 == sql.scalar(count, {"ids": ids})


def test_creating_within_limits_is_one_statement(limited: Limited) -> None:
    """It takes no more round trips than without limits."""
    of = limited(org_concurrent_runs=9, key_concurrent_runs=9, org_queued_runs=9)
    creator = RunCreator(of.connections, of.catalog())
    creator(wanted(of))

    with noted(of.connections) as statements:
        creator(wanted(of))

    assert 1 == len(statements)


def test_uses_are_what_counts(limited: Limited) -> None:
    """Each limit that is set has its count."""
    of = limited(org_concurrent_runs=9, key_concurrent_runs=8, org_queued_runs=7)
    key = replace(of.actor, api_key_id=new_id())
    for actor in (key, of.actor, of.actor):
        assert refusal(of, wanted(of, actor=actor)) is None
    of.claim(of.sent[0])

    with of.connections.reading() as sql:
        found = run_limits.uses(sql, of.connections.settings, key)

    used = {(use.name, use.scope): (use.limit, use.used) for use in found}
    assert {
        ("concurrent_runs", "key"): (8, 1),
        ("concurrent_runs", "org"): (9, 3),
        ("queued_runs", "org"): (7, 2),
    } == used
