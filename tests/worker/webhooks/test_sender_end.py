"""The end of a sender: attempts that are in progress are recorded before the process ends."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from arkloop.worker.webhooks.sender import WebhookSender
from tests.clients import User
from tests.tool_receiver import Received, Reply, ToolReceiver
from tests.waiting import eventually
from tests.worker.webhooks.test_sender import Hook

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, allowed_networks=("127.0.0.1/32",), webhook_timeout_seconds=20.0)


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


def test_a_record_that_waits_keeps_no_other_message_waiting(
    connections: Connections, alice: User, receiver: ToolReceiver, responds: threading.Event
) -> None:
    """Postgres may hold a record up: other endpoints get their messages meanwhile."""
    stopped = threading.Event()
    with ToolReceiver(lambda _: Reply()) as other:
        slow, fast = (Hook(connections, alice.org_id, one.url) for one in (receiver, other))
        held = slow.test()
        sender = WebhookSender(connections, stopped)
        eventually(lambda: len(receiver.received) == 1)
        with connections.transaction() as tx:
            locked = text("SELECT FROM webhook_deliveries WHERE id = :id FOR UPDATE")
            tx.sql.execute(locked, {"id": held})
            responds.set()
            eventually(lambda: not sender._in_progress())
            fast.test()
            eventually(lambda: bool(other.received), seconds=10)
            assert "pending" == slow.row(held).state
        eventually(lambda: slow.row(held).state == "delivered")
        assert 1 == len(receiver.received)

    stopped.set()
    sender.wait_until_ended()


def test_a_result_that_cannot_be_written_takes_no_other_one_along(
    connections: Connections,
    alice: User,
    receiver: ToolReceiver,
    responds: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Postgres refuses one of several; the log has its id."""
    stopped = threading.Event()
    made = Hook(connections, alice.org_id, receiver.url)
    refused, *others = [made.test() for _ in range(3)]
    is_refused = f"CHECK (id <> '{refused}' OR tried_at IS NULL)"
    with connections.transaction() as tx:
        tx.sql.execute(text(f"ALTER TABLE webhook_deliveries ADD CONSTRAINT refused {is_refused}"))
    sender = WebhookSender(connections, stopped)
    eventually(lambda: len(receiver.received) == 3)
    responds.set()

    eventually(lambda: {made.row(one).state for one in others} == {"delivered"})
    stopped.set()
    sender.wait_until_ended()
    with connections.transaction() as tx:
        tx.sql.execute(text("ALTER TABLE webhook_deliveries DROP CONSTRAINT refused"))

    assert "pending" == made.row(refused).state
    assert f"recording an attempt of {refused} failed" in caplog.text
