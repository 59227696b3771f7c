"""A receiver of webhooks that responds when a test lets it."""

import threading
from collections.abc import Iterator

import pytest

from tests.tool_receiver import Received, Reply, ToolReceiver


@pytest.fixture
def responds() -> threading.Event:
    """An event for which receivers wait before they respond."""
    return threading.Event()


@pytest.fixture
def receiver(responds: threading.Event) -> Iterator[ToolReceiver]:
    def respond(_: Received) -> Reply:
        responds.wait(30)
        return Reply()

    with ToolReceiver(respond) as made:
        yield made
