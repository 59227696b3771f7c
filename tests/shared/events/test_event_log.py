"""The event log: numbers without holes, and the same events from Redis and from Postgres."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared import times
from arkloop.shared.events import event_log
from arkloop.shared.events.event_log import open_events, text_of
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.types import (
    MessageCompleted,
    MessageDelta,
    MessageReset,
    MessageThinking,
)
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import runs
from tests.stored_runs import StoredRuns, numbered
from tests.waiting import in_parallel


@pytest.fixture
def written(stored: StoredRuns) -> tuple[UUID, list[StoredEvent]]:
    """A run with ten events, in Postgres and Redis."""
    claim = stored.claimed()
    stored.write(claim, *(MessageDelta(f"{i}") for i in range(2, 11)))
    return claim.run_id, stored.events(claim.run_id)


def heard(stored: StoredRuns, run_id: UUID, write: Callable[[], object]) -> list[str]:
    """Return what the followers of the run are sent because of `write`."""
    redis, channel = stored.connections.redis, stored.connections.keys.news(run_id)
    messages: list[str] = []
    with redis.pubsub() as pubsub:
        pubsub.subscribe(channel)
        assert pubsub.get_message(timeout=60)["type"] == "subscribe"
        write()
        redis.publish(channel, "end")
        while (message := pubsub.get_message(timeout=60)["data"]) != "end":
            messages.append(message)
    return messages


def test_appends_at_once_have_numbers_without_holes(stored: StoredRuns) -> None:
    """Numbered under the run's row lock."""
    run_id = stored.create()

    def append(_: int) -> None:
        for _ in range(5):
            with stored.connections.transaction() as tx:
                tx.sql.execute(select(runs.c.id).where(runs.c.id == run_id).with_for_update())
                events = [MessageDelta("a"), MessageDelta("b")]
                event_log.store(tx, {run_id: event_log.number(tx, run_id, events)})

    in_parallel(8, append)

    assert list(range(1, 81)) == [event.seq for event in stored.events(run_id)]


def test_both_stores_give_the_same_from_every_cursor(
    stored: StoredRuns, written: tuple[UUID, list[StoredEvent]]
) -> None:
    """A cursor is a stream position; beyond the end there is nothing."""
    run_id, events = written
    for cursor in range(13):
        expected = events[cursor:]
        assert expected == stored.published(run_id, cursor)
        with stored.connections.reading() as sql:
            assert expected == event_log.read_table(sql, run_id, cursor)
            assert expected[:3] == event_log.read_table(sql, run_id, cursor, 3)


def test_an_event_published_twice_is_there_once(
    stored: StoredRuns, written: tuple[UUID, list[StoredEvent]]
) -> None:
    """Redis refuses a number that is not beyond its last."""
    run_id, events = written

    event_log.publish(stored.connections, {run_id: events[3:]})

    assert events == stored.published(run_id)


@pytest.mark.parametrize("character", ["x", "世"])
def test_a_stream_of_large_events_stays_small(stored: StoredRuns, character: str) -> None:
    """Redis keeps the newest of them, up to some MiB; the others are read from Postgres."""
    claim = stored.claimed()
    large = MessageDelta(character * 10_000)
    for _ in range(10):
        stored.write(claim, *[large] * 100)

    redis, key = stored.connections.redis, stored.connections.keys.events(claim.run_id)
    assert redis.memory_usage(key, samples=0) < 1.5 * event_log.STREAM_MAX_BYTES
    kept = stored.published(claim.run_id)
    assert stored.events(claim.run_id)[-len(kept) :] == kept
    assert len(kept) > 30


def test_a_stream_of_small_events_is_long(stored: StoredRuns) -> None:
    """A follower that is behind reads them from Redis."""
    claim = stored.claimed()
    stored.write(claim, *[MessageDelta("word ")] * 2_000)

    assert stored.events(claim.run_id) == stored.published(claim.run_id)


def test_a_stream_that_redis_has_lost_is_made_anew_with_an_end(stored: StoredRuns) -> None:
    """Otherwise that of a run whose end is not published would stay for good."""
    claim = stored.claimed()
    redis, key = stored.connections.redis, stored.connections.keys.events(claim.run_id)
    redis.delete(key)
    stored.connections.redis_outage.failed()
    stored.connections.redis_outage.answered()
    stored.write(claim, MessageDelta("word"))

    assert redis.ttl(key) > 6 * 86_400


def test_a_stream_lives_as_long_as_its_run_and_a_while(stored: StoredRuns) -> None:
    """The time to live after the end is the operator's."""
    claim = stored.claimed()
    redis, key = stored.connections.redis, stored.connections.keys.events(claim.run_id)
    assert redis.ttl(key) > 6 * 86_400

    stored.finish(claim)

    assert 0 < redis.ttl(key) <= stored.connections.settings.stream_ttl_seconds


@pytest.mark.parametrize(
    ("happened", "text"),
    [
        ([], ""),
        ([MessageDelta("a"), MessageThinking("no"), MessageDelta("b")], "ab"),
        ([MessageDelta("a"), MessageCompleted("m", "a", Usage())], ""),
        ([MessageDelta("a"), MessageCompleted("m", "a", Usage()), MessageDelta("b")], "b"),
        ([MessageDelta("a"), MessageReset(2, "x"), MessageDelta("b")], "b"),
        ([MessageDelta("a"), MessageReset(2, "x")], ""),
        ([MessageDelta("a"), MessageDelta("b"), MessageReset(3, "x"), MessageDelta("c")], "ac"),
    ],
)
def test_open_text_is_what_no_turn_has_finished(
    stored: StoredRuns, happened: list[MessageDelta], text: str
) -> None:
    """Since the last finished turn, without reasoning and without what is void."""
    claim = stored.claimed()
    if happened:
        stored.write(claim, *happened)

    with stored.connections.reading() as sql:
        assert text == text_of(open_events(sql, claim.run_id))


def test_long_events_are_not_copied_to_the_stream(stored: StoredRuns) -> None:
    """Readers hold what they read from Redis by number; the table has them all."""
    claim = stored.claimed()
    short, long = "x" * 1_000, "x" * event_log.STREAM_MAX_CHARACTERS
    stored.write(claim, MessageDelta(short), MessageDelta(long), MessageDelta(short))

    copied = stored.connections.redis.xrange(stored.connections.keys.events(claim.run_id))

    assert ["1-0", "2-0", "4-0"] == [entry_id for entry_id, _ in copied]
    assert [1, 2, 3, 4] == [event.seq for event in stored.events(claim.run_id)]


def test_followers_are_sent_events_and_then_their_number(stored: StoredRuns) -> None:
    """First and last number, then a payload in each line; the number is for all other followers."""
    claim = stored.claimed()
    texts = [MessageDelta("a\nb"), MessageDelta("\u2028")]

    messages = heard(stored, claim.run_id, lambda: stored.write(claim, *texts))

    payloads = [event.payload for event in stored.events(claim.run_id)[1:]]
    assert ["\n".join(["2 3", *payloads]), "3"] == messages


@pytest.mark.parametrize(("characters", "come_along"), [(4_096, True), (4_097, False)])
def test_events_come_along_up_to_a_number_of_characters(
    stored: StoredRuns, characters: int, come_along: bool
) -> None:
    """Characters of all payloads of one batch, not bytes; of longer ones followers get a number."""
    claim, now = stored.claimed(), times.now()
    short = encode(2, MessageDelta("a"), now)
    room = characters - len(short.payload) - len(encode(3, MessageDelta(""), now).payload)
    batch = {claim.run_id: [short, encode(3, MessageDelta("世" * room), now)]}
    assert characters == sum(len(event.payload) for event in batch[claim.run_id])

    messages = heard(stored, claim.run_id, lambda: event_log.publish(stored.connections, batch))

    assert ["2 3\n"] * come_along + ["3"] == [message[:4] for message in messages]


def test_a_takeover_drops_what_only_redis_has(stored: StoredRuns) -> None:
    """Events that Postgres has lost: their numbers are used again."""
    claim = stored.claimed()
    phantoms = numbered(1, *[MessageDelta("lost")] * 4)
    event_log.publish(stored.connections, {claim.run_id: phantoms})
    stored.set(claim.run_id, state=RunState.QUEUED, resume_reason="worker_lost")

    assert stored.claim(claim.run_id) is not None

    assert stored.events(claim.run_id)[1:] == stored.published(claim.run_id)
    assert 0 < stored.connections.redis.ttl(stored.connections.keys.events(claim.run_id))
