"""The records of a sender: what Postgres refuses, holds up or cannot take for a while."""

import threading
from dataclasses import replace

import pytest
from sqlalchemy import text

from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from arkloop.worker.webhooks.sender import WebhookSender
from tests.clients import User
from tests.tool_receiver import Reply, ToolReceiver
from tests.waiting import eventually
from tests.worker.webhooks.test_sender import Hook

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, allowed_networks=("127.0.0.1/32",), webhook_timeout_seconds=20.0)


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


def test_an_outage_between_records_one_by_one_loses_none(
    connections: Connections,
    alice: User,
    receiver: ToolReceiver,
    responds: threading.Event,
) -> None:
    """Postgres refuses one of several, which are written one by one then, and is shut down under
    another one: what is not written yet is written later, and the end of the sender does not wait.
    """
    stopped = threading.Event()
    made = Hook(connections, alice.org_id, receiver.url)
    refused, cut_off, *others = [made.test() for _ in range(5)]
    with connections.transaction() as tx:
        # Sequences keep what a statement that failed has taken from them.
        for statement in (
            "CREATE SEQUENCE refusals",
            "CREATE SEQUENCE outages",
            f"""CREATE FUNCTION fail_a_record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.id = '{refused}' THEN
                    PERFORM nextval('refusals');
                    RAISE check_violation;
                ELSIF NEW.id = '{cut_off}' AND (SELECT is_called FROM refusals)
                        AND nextval('outages') = 1 THEN
                    RAISE admin_shutdown;
                END IF;
                RETURN NEW;
            END $$""",
            """CREATE TRIGGER fail_a_record BEFORE UPDATE ON webhook_deliveries FOR EACH ROW
                WHEN (NEW.tried_at IS NOT NULL) EXECUTE FUNCTION fail_a_record()""",
        ):
            tx.sql.execute(text(statement))
    sender = WebhookSender(connections, stopped)
    eventually(lambda: len(receiver.received) == 5)
    responds.set()

    sent = [cut_off, *others]
    eventually(lambda: [made.row(one).state for one in sent] == ["delivered"] * 4)
    stopped.set()
    eventually(sender._is_over.is_set)
    with connections.transaction() as tx:
        assert tx.sql.scalar(text("SELECT is_called FROM outages"))
        tx.sql.execute(text("DROP FUNCTION fail_a_record CASCADE"))
        tx.sql.execute(text("DROP SEQUENCE refusals, outages"))

    assert 5 == len(receiver.received)
