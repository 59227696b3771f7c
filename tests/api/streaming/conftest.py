"""A hub of streams, and a run that is followed."""

from collections.abc import Iterator

import pytest

from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.shared.storage.connections import Connections
from tests.api.streaming.followed_runs import FollowedRun
from tests.clients import User
from tests.stored_runs import StoredRuns


@pytest.fixture
def hub(connections: Connections) -> Iterator[StreamHub]:
    hub = StreamHub(connections)
    yield hub
    hub.close()


@pytest.fixture
def run(connections: Connections, alice: User) -> FollowedRun:
    return FollowedRun.of(StoredRuns.of(connections, alice))
