"""Signals to workers: none is missed for long, whatever a process learns while it subscribes."""

import logging
import threading
import time
from dataclasses import dataclass, replace
from uuid import UUID

import pytest

from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.signals import Cancel, SignalListener, listen
from tests.waiting import eventually


def test_an_epoch_that_is_learned_while_subscribing_loses_no_signals(
    connections: Connections,
) -> None:
    """A worker whose epoch ends while it subscribes still gets signals."""
    with connections.reading():
        assert "" != connections.keys.epoch
    worker_id, run_id = new_id(), new_id()
    learning = _LearningKeys(connections.keys)
    got: list[tuple[str, UUID]] = []
    listener = SignalListener(
        replace(connections, keys=learning), worker_id, list, lambda *found: got.append(found[:2])
    )

    def arrived() -> bool:
        Cancel.send(connections, [Cancel(run_id, worker_id, new_id())])
        return bool(got)

    try:
        eventually(arrived)
    finally:
        listener.stop()

    assert ("cancel", run_id) == got[0]


def test_nothing_is_subscribed_to_before_its_name_is_known(connections: Connections) -> None:
    """A new worker subscribes when it has learned the epoch, and not to a channel without one."""
    with connections.reading():
        known = connections.keys
    worker_id, unknown = new_id(), Keys()

    def channels() -> list[str]:
        return list(connections.redis.pubsub_channels(f"*:worker:{worker_id}:signals"))

    listener = SignalListener(replace(connections, keys=unknown), worker_id, list, lambda *_: None)
    try:
        time.sleep(0.1)  # it would subscribe at once
        before = channels()
        unknown.installation, unknown.epoch = known.installation, known.epoch
        eventually(channels)
    finally:
        listener.stop()

    assert [] == before


def test_a_subscription_that_is_back_says_so(
    connections: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has a line for its loss, and one for its return."""
    caplog.set_level(logging.INFO)
    worker_id = new_id()
    url = f"{connections.settings.redis_url}?client_name={worker_id}"
    named = replace(connections, settings=replace(connections.settings, redis_url=url))
    with connections.reading():  # the epoch is known
        pass

    def clients() -> list[str]:
        every = connections.redis.client_list(_type="pubsub")
        return [one["id"] for one in every if one["name"] == str(worker_id)]

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        return [line for line in found if "signal subscription" in line]

    listener = SignalListener(named, worker_id, list, lambda *_: None)
    try:
        eventually(clients)
        [lost] = clients()
        connections.redis.client_kill_filter(_id=lost)
        eventually(lambda: len(lines()) > 1)
    finally:
        listener.stop()

    first, over = lines()
    assert first.startswith("signal subscription lost; reconnecting: ")
    assert over.startswith("the signal subscription works again after ")


def test_what_is_published_under_an_old_epoch_is_not_passed_on(connections: Connections) -> None:
    """A message that was waited for may say what Postgres does not have any more."""
    names, channel = Keys(), f"old.1:run:{new_id()}:news"
    names.epoch = "old.1"

    def begin_anew() -> None:
        names.epoch = "new.2"
        connections.redis.publish(channel, "1")

    with connections.redis.pubsub() as pubsub:
        pubsub.subscribe(channel)
        heard = listen(pubsub, names, names.epoch)
        assert "subscribe" == next(heard)["type"]
        later = threading.Timer(0.1, begin_anew)
        later.start()

        assert [] == list(heard)
        later.join()  # it may still read what Redis replies, and connections close after the test


@dataclass(eq=False)
class _LearningKeys(Keys):
    """Names that become those of `known` right after the first channel has got its name."""

    known: Keys

    def __post_init__(self) -> None:
        super().__init__()
        self.epoch = "before"

    def worker_signals(self, worker_id: UUID | str) -> str:
        name = super().worker_signals(worker_id)
        self.installation, self.epoch = self.known.installation, self.known.epoch
        return name
