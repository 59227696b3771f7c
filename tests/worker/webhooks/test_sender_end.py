"""The end of a sender: attempts that are in progress are recorded before the process ends."""

import threading
from dataclasses import replace
from uuid import UUID

import pytest

from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from arkloop.worker.webhooks.sender import WebhookSender
from tests.clients import User
from tests.tool_receiver import ToolReceiver
from tests.waiting import eventually
from tests.worker.webhooks.test_sender import Hook

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, allowed_networks=("127.0.0.1/32",), webhook_timeout_seconds=20.0)


@pytest.fixture
def sent(connections: Connections, alice: User, receiver: ToolReceiver) -> tuple[Hook, list[UUID]]:
    """An endpoint, and three messages for it."""
    made = Hook(connections, alice.org_id, receiver.url)
    return made, [made.test() for _ in range(3)]


def stopped_while_sending(connections: Connections, receiver: ToolReceiver) -> WebhookSender:
    """Begin the attempts of three messages with a sender, and stop it before they end."""
    stopped = threading.Event()
    sender = WebhookSender(connections, stopped)
    eventually(lambda: len(receiver.received) == 3)
    stopped.set()
    return sender


def test_a_sender_records_attempts_that_end_after_it_was_stopped(
    connections: Connections,
    receiver: ToolReceiver,
    responds: threading.Event,
    sent: tuple[Hook, list[UUID]],
) -> None:
    """Runs may end for longer than attempts, and another process would make these again."""
    made, messages = sent
    sender = stopped_while_sending(connections, receiver)
    eventually(sender._begins_none.is_set)
    responds.set()

    eventually(lambda: {made.row(one).state for one in messages} == {"delivered"}, seconds=15)
    sender.wait_until_ended()
    eventually(sender._is_over.is_set)


def test_the_end_of_a_sender_waits_for_records(
    connections: Connections,
    receiver: ToolReceiver,
    responds: threading.Event,
    sent: tuple[Hook, list[UUID]],
) -> None:
    """All attempts are recorded when the wait for them is over."""
    made, messages = sent
    sender = stopped_while_sending(connections, receiver)

    threading.Timer(0.3, responds.set).start()
    sender.wait_until_ended()

    assert ["delivered"] * 3 == [made.row(one).state for one in messages]
