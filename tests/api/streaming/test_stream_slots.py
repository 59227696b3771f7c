"""The limits on open streams."""

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select

from arkloop.api.app import create_app
from arkloop.api.streaming import stream_slots
from arkloop.api.streaming.stream_slots import Slot, StreamSlots
from arkloop.shared.actors import Actor
from arkloop.shared.errors import StreamLimitExceeded
from arkloop.shared.ids import new_id
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.storage.connections import REDIS_PAUSE_SECONDS, Connections, connect_redis
from arkloop.shared.storage.outage import Outage
from arkloop.shared.storage.tables.runs import runs
from tests.clients import User, error_of
from tests.shared_app import patient_with_redis
from tests.waiting import eventually, in_parallel

Processes = Callable[..., StreamSlots]


@pytest.fixture
def process(app: Flask, connections: Connections) -> Iterator[Processes]:
    """Call it for the slots of a web process of its own."""
    with ExitStack() as at_exit:
        patient = at_exit.enter_context(patient_with_redis(connections))

        def new(others: Connections = patient, **settings: Any) -> StreamSlots:
            changed = replace(others.settings, **settings)
            slots = StreamSlots(replace(others, settings=changed))
            at_exit.callback(slots.close)
            return slots

        yield new


@pytest.fixture
def actor() -> Actor:
    return Actor(org_id=new_id(), user_id=new_id(), role="owner", permissions=frozenset())


def taken(slots: StreamSlots, actor: Actor) -> Slot | None:
    """Return a slot, None if there is none."""
    try:
        return slots.take(actor)
    except StreamLimitExceeded:
        return None


def used(slots: StreamSlots, actor: Actor) -> list[int]:
    return [use.used for use in slots.uses(actor)]


def test_of_64_callers_of_two_processes_as_many_as_may_get_a_slot(
    process: Processes, actor: Actor
) -> None:
    """Slots that come back meanwhile are given out once."""
    two = [process(org_streams=20) for _ in range(2)]

    found = in_parallel(64, lambda number: taken(two[number % 2], actor))

    assert {True: 20, False: 44} == Counter(slot is not None for slot in found)
    assert [[20], [20]] == [used(slots, actor) for slots in two]
    for slot in [slot for slot in found if slot is not None][:7]:
        slot.free()
    eventually(lambda: [[13], [13]] == [used(slots, actor) for slots in two])
    again = in_parallel(32, lambda number: taken(two[number % 2], actor))
    assert 7 == sum(slot is not None for slot in again)


def test_a_key_has_a_limit_of_its_own(process: Processes, actor: Actor) -> None:
    """A stream that the org is refused takes nothing from the key, and the other way round."""
    slots = process(org_streams=2, key_streams=1)
    key, other = (replace(actor, api_key_id=new_id()) for _ in range(2))

    held = [taken(slots, one) for one in (key, key, actor, other)]

    assert [True, False, True, False] == [slot is not None for slot in held]
    assert [[1, 2], [0, 2]] == [used(slots, one) for one in (key, other)]


def test_the_slots_of_a_dead_process_are_free_after_its_lease(
    process: Processes, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there to give them back; a living one keeps its own for longer than a lease."""
    monkeypatch.setattr(stream_slots, "LEASE_SECONDS", 4.0)  # a process may stand still as long
    monkeypatch.setattr(stream_slots, "RENEW_SECONDS", 0.2)
    dead, living = process(org_streams=3), process(org_streams=3)
    held = [dead.take(actor), dead.take(actor), living.take(actor)]
    assert taken(living, actor) is None

    dead.close()

    eventually(lambda: [1] == used(living, actor))
    held += [living.take(actor), living.take(actor)]
    assert taken(living, actor) is None
    assert 5 == len(held)


def test_a_slot_that_was_given_back_is_given_out_without_a_round_trip(
    process: Processes, actor: Actor, connections: Connections
) -> None:
    """It is kept while Redis has it; other processes cannot have it meanwhile."""
    slots, other = process(org_streams=2), process(org_streams=2)
    before = _script_calls(connections)
    held = [slots.take(actor), slots.take(actor)]
    for _ in range(30):
        slot = held.pop()
        assert slot is not None
        slot.free()
        held.append(slots.take(actor))
        assert taken(slots, actor) is None
        assert taken(other, actor) is None

    # 2 slots, 60 refusals, and what each process writes in between.
    assert _script_calls(connections) - before < 75
    for slot in held:
        assert slot is not None
        slot.free()
    eventually(lambda: [0] == used(other, actor))
    again = [taken(other, actor) for _ in range(3)]
    assert [True, True, False] == [slot is not None for slot in again]


def test_a_lower_limit_counts_for_slots_that_were_given_back(
    process: Processes, actor: Actor
) -> None:
    """They were accepted under the higher one."""
    slots = process()
    high, low = (replace(actor, limits=OrgLimits(org_streams=most)) for most in (3, 1))
    held = [slots.take(high) for _ in range(3)]
    slot = held.pop()
    assert slot is not None
    slot.free()

    assert taken(slots, low) is None
    assert taken(slots, high) is not None


def test_a_reserve_saves_round_trips(
    process: Processes, actor: Actor, connections: Connections
) -> None:
    """A process that opens streams one after the other asks Redis once for many of them."""
    slots = process(org_streams=3000)
    before = _script_calls(connections)
    held = [slots.take(actor) for _ in range(20)]
    for _ in range(100):
        slot = held.pop()
        assert slot is not None
        slot.free()
        held.append(slots.take(actor))

    # The first of them, and what is renewed meanwhile, in tests next to this one, too.
    assert _script_calls(connections) - before < 20


def test_with_reserves_no_slot_is_given_beyond_the_limit(process: Processes, actor: Actor) -> None:
    """Each process finds what is left beside the reserve of the other."""
    two = [process(org_streams=300) for _ in range(2)]
    held = [slots.take(actor) for slots in two for _ in range(140)]

    found = in_parallel(64, lambda number: taken(two[number % 2], actor))

    held += [slot for slot in found if slot is not None]
    assert 300 - 3 <= len(held) <= 300
    assert all(len(held) <= most <= 300 for slots in two for most in used(slots, actor))


def test_a_reserve_that_is_not_used_is_given_back(
    process: Processes, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after its process has opened its last stream."""
    monkeypatch.setattr(stream_slots, "RENEW_SECONDS", 0.2)
    slots, other = process(org_streams=200), process(org_streams=200)
    slot = slots.take(actor)
    assert slot is not None
    assert [3] == used(other, actor)

    slot.free()

    eventually(lambda: [0] == used(other, actor))
    held = [taken(other, actor) for _ in range(201)]
    assert 200 == sum(slot is not None for slot in held)


def _script_calls(connections: Connections) -> int:
    stats = connections.redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


def test_a_slot_that_nobody_has_any_more_is_free(process: Processes, actor: Actor) -> None:
    """A response may be dropped before its body is begun or closed."""
    slots = process(org_streams=1)
    held = [slots.take(actor)]
    assert taken(slots, actor) is None

    held.clear()
    gc.collect()

    assert taken(slots, actor) is not None


def test_without_redis_a_process_allows_its_share(
    process: Processes, actor: Actor, connections: Connections
) -> None:
    """The limit divided by the web processes of the machine; nothing fails."""
    away = replace(
        connections,
        redis=connect_redis("redis://127.0.0.1:1/0"),
        redis_outage=Outage(REDIS_PAUSE_SECONDS),
    )
    slots = process(away, org_streams=6, api_workers=2)

    held = [taken(slots, actor) for _ in range(9)]

    assert 3 == sum(slot is not None for slot in held)
    assert [3] == used(slots, actor)


# ---- over HTTP -----------------------------------------------------------------------

SSE = {"Accept": "text/event-stream"}


@pytest.fixture
def bob(connections: Connections, alice: User) -> Iterator[User]:
    """A user of an app in which an org may have one stream."""
    changed = replace(connections.settings, org_streams=1)
    app = create_app(connections=replace(connections, settings=changed))
    yield replace(alice, client=app.test_client())
    for name in ("hub", "polls", "reports", "stream_slots"):
        app.extensions[f"arkloop.{name}"].close()


def test_a_stream_too_many_gets_429(bob: User) -> None:
    """Its end makes room at once, for runs and threads, and `/v1/me` shows how many are open."""
    made = bob.post("/v1/runs", {"message": "hello"}).json
    assert made is not None
    paths = [f"/v1/{kind}/{made[name]}/events" for kind, name in _STREAMS]

    open_ = bob.get(paths[0])

    assert 200 == open_.status_code
    for path in paths:
        refused = bob.get(path)
        assert (429, "streams.limit_exceeded") == error_of(refused)
        assert "1" == refused.headers["Retry-After"]
        assert 200 == bob.call("HEAD", path).status_code
    me = bob.get("/v1/me").json
    assert me is not None
    assert [("streams", "org", 1, 1)] == [
        (one["name"], one["scope"], one["limit"], one["used"]) for one in me["limits"]
    ]
    open_.close()
    last = bob.get(paths[1])
    assert 200 == last.status_code
    last.close()


_STREAMS = (("runs", "run_id"), ("threads", "thread_id"))


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/runs", {"message": "hello"}, SSE),
        ("/v1/responses", {"model": "scripted", "input": "hello", "stream": True}, {}),
        (
            "/v1/agui",
            {
                "threadId": "t",
                "runId": "r",
                "state": {},
                "tools": [],
                "context": [],
                "messages": [{"id": "m", "role": "user", "content": "hello"}],
                "forwardedProps": {},
            },
            SSE,
        ),
        (
            "/v1/ui/chat",
            {
                "id": "chat",
                "trigger": "submit-message",
                "messages": [
                    {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
                ],
            },
            {},
        ),
    ],
)
def test_a_request_without_a_slot_creates_nothing(
    bob: User, connections: Connections, path: str, body: Any, headers: dict[str, str]
) -> None:
    """A caller of any protocol must not get a 429 for a run that exists."""
    made = bob.post("/v1/runs", {"message": "hello"}).json
    assert made is not None
    open_ = bob.get(f"/v1/runs/{made['run_id']}/events")

    refused = bob.post(path, body, headers=headers)

    assert 429 == refused.status_code, refused.text
    with connections.reading() as sql:
        count = select(func.count()).select_from(runs).where(runs.c.org_id == bob.org_id)
        assert 1 == sql.scalar(count)
    open_.close()
    accepted = bob.post(path, body, headers=headers)
    assert accepted.status_code < 300, accepted.text
    accepted.close()


def test_a_request_that_opens_no_stream_gives_its_slot_back(bob: User) -> None:
    """It may be refused after it has reserved one."""
    for _ in range(3):
        refused = bob.post("/v1/runs", {"message": "hello", "persona_id": "nobody"}, headers=SSE)
        assert (422, "personas.not_found") == error_of(refused)
