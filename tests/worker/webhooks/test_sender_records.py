"""The records of a sender: what Postgres refuses, holds up or cannot take for a while."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.postgres import RUN_TIMEOUTS
from arkloop.worker.webhooks import sender as sender_module
from arkloop.worker.webhooks.sender import MAX_ATTEMPTS_OF_ENDPOINT, WebhookSender
from tests.clients import User
from tests.tool_receiver import Received, Reply, ToolReceiver
from tests.waiting import eventually
from tests.worker.webhooks.test_sender import Hook

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, allowed_networks=("127.0.0.1/32",), webhook_timeout_seconds=20.0)


@pytest.fixture
def of_worker(connections: Connections) -> Iterator[Connections]:
    """Connections whose statements wait for as long as those of a worker."""
    made = connections.with_pool(application="arkloop-worker", size=4, timeouts=RUN_TIMEOUTS)
    yield made
    made.close_pool()


@contextmanager
def locked(connections: Connections, table: str, *ids: UUID) -> Iterator[None]:
    """Lock rows, as a session of psql does that somebody has left open."""
    with connections.transaction() as tx:
        tx.sql.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        query = text(f"SELECT FROM {table} WHERE id = ANY(:ids) FOR UPDATE")
        tx.sql.execute(query, {"ids": list(ids)})
        yield


@contextmanager
def refused(connections: Connections, delivery_id: UUID) -> Iterator[None]:
    """Let Postgres refuse the record of a delivery."""
    check = f"CHECK (id <> '{delivery_id}' OR tried_at IS NULL)"
    with connections.transaction() as tx:
        tx.sql.execute(text(f"ALTER TABLE webhook_deliveries ADD CONSTRAINT refused {check}"))
    try:
        yield
    finally:
        with connections.transaction() as tx:
            tx.sql.execute(text("ALTER TABLE webhook_deliveries DROP CONSTRAINT refused"))


@pytest.mark.parametrize("table", ["webhook_deliveries", "webhook_endpoints"])
def test_a_locked_row_keeps_no_other_message_or_result_waiting(
    connections: Connections,
    of_worker: Connections,
    alice: User,
    receiver: ToolReceiver,
    responds: threading.Event,
    caplog: pytest.LogCaptureFixture,
    table: str,
) -> None:
    """The first record waits for the row, which the log names, and later ones do not; the messages
    of other endpoints are sent meanwhile. What belongs to the row is recorded when it is free.
    """
    stopped = threading.Event()
    receiver.answer = lambda _: Reply(status=410 if responds.wait(30) else 500)
    with ToolReceiver(lambda _: Reply()) as other:
        slow, fast = (Hook(connections, alice.org_id, one.url) for one in (receiver, other))
        held = slow.test()
        sender = WebhookSender(of_worker, stopped)
        eventually(lambda: len(receiver.received) == 1)
        row_id = held if table == "webhook_deliveries" else slow.id
        with locked(connections, table, row_id):
            responds.set()
            eventually(lambda: not sender._in_progress())
            fast.test()
            eventually(lambda: len(other.received) == 1, seconds=1)
            first = fast.test()
            eventually(lambda: fast.row(first).state == "delivered", seconds=8)
            later = fast.test()
            eventually(lambda: fast.row(later).state == "delivered", seconds=1)
            assert "pending" == slow.row(held).state
        eventually(lambda: slow.row(held).state == "dead")
        assert (1, 3) == (len(receiver.received), len(other.received))

    stopped.set()
    sender.wait_until_ended()
    assert f"an attempt of {held} waits: the row {row_id} of {table} is locked" in caplog.text


def test_more_failures_of_a_locked_endpoint_keep_no_other_result_waiting(
    connections: Connections, of_worker: Connections, alice: User
) -> None:
    """Each is another result that has to wait for the row; only the first record finds it out."""
    stopped = threading.Event()
    with (
        ToolReceiver(lambda _: Reply(status=500)) as broken,
        ToolReceiver(lambda _: Reply()) as other,
    ):
        slow, fast = (Hook(connections, alice.org_id, one.url) for one in (broken, other))
        failed: list[UUID] = []
        sent: list[UUID] = []
        sender = WebhookSender(of_worker, stopped)
        with locked(connections, "webhook_endpoints", slow.id):
            for seconds in (8, 2, 2):
                failed.append(slow.test())
                eventually(lambda: len(sender._results) == len(failed))
                sent.append(fast.test())
                eventually(lambda: fast.row(sent[-1]).state == "delivered", seconds=seconds)

    stopped.set()
    sender.wait_until_ended()


def test_a_record_that_does_not_change_its_endpoint_does_not_wait_for_it(
    connections: Connections,
    of_worker: Connections,
    alice: User,
    receiver: ToolReceiver,
    responds: threading.Event,
) -> None:
    """A success of an endpoint that works is recorded while the row of the endpoint is locked,
    also together with a result that waits for its own row.
    """
    stopped = threading.Event()
    held, working = (Hook(connections, alice.org_id, receiver.url) for _ in range(2))
    waits, sent = held.test(), working.test()
    sender = WebhookSender(of_worker, stopped)
    eventually(lambda: len(receiver.received) == 2)
    with (
        locked(connections, "webhook_endpoints", working.id),
        locked(connections, "webhook_deliveries", waits),
    ):
        responds.set()
        eventually(lambda: working.row(sent).state == "delivered", seconds=8)
        assert "pending" == held.row(waits).state

    eventually(lambda: held.row(waits).state == "delivered")
    stopped.set()
    sender.wait_until_ended()


def test_records_one_by_one_do_not_wait_for_each_locked_row(
    connections: Connections,
    of_worker: Connections,
    alice: User,
    receiver: ToolReceiver,
    responds: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Postgres refuses one of several results, and others wait for their rows: later ones are as
    late as if one row were locked.
    """
    monkeypatch.setattr(sender_module, "GATHER_RESULTS_SECONDS", 1.0)  # all results are one record
    stopped, is_locked = threading.Event(), threading.Event()
    first = ToolReceiver(lambda _: Reply(status=200 if is_locked.wait(30) else 500))
    with first, ToolReceiver(lambda _: Reply()) as other:
        wrong, slow, fast = (
            Hook(connections, alice.org_id, one.url) for one in (first, receiver, other)
        )
        refused_one, held = wrong.test(), [slow.test() for _ in range(4)]
        with refused(connections, refused_one):
            sender = WebhookSender(of_worker, stopped)
            eventually(lambda: len(first.received) + len(receiver.received) == 5)
            with locked(connections, "webhook_deliveries", *held):
                is_locked.set()
                eventually(lambda: bool(sender._results))
                responds.set()
                eventually(lambda: not sender._in_progress())
                sent = fast.test()
                eventually(lambda: fast.row(sent).state == "delivered", seconds=7)
            eventually(lambda: {slow.row(one).state for one in held} == {"delivered"})

            stopped.set()
            sender.wait_until_ended()


@pytest.mark.parametrize("table", ["webhook_deliveries", "webhook_endpoints"])
def test_a_result_whose_row_stays_locked_is_kept(
    connections: Connections,
    of_worker: Connections,
    alice: User,
    receiver: ToolReceiver,
    responds: threading.Event,
    table: str,
) -> None:
    """The attempt is not repeated after its lease, and more results of the endpoint do not pile up:
    no more messages are sent than there may be attempts of one endpoint.
    """
    stopped = threading.Event()
    hurried = replace(connections.settings, webhook_timeout_seconds=1.0)
    made = Hook(connections, alice.org_id, receiver.url)
    held = made.test()

    def fail(_request: Received) -> Reply:
        responds.wait(0.5)
        return Reply(status=500)

    receiver.answer = fail
    sender = WebhookSender(replace(of_worker, settings=hurried), stopped)
    eventually(lambda: len(receiver.received) == 1)
    with locked(connections, table, held if table == "webhook_deliveries" else made.id):
        responds.set()
        eventually(lambda: bool(sender._locked), seconds=8)
        for _ in range(2 * MAX_ATTEMPTS_OF_ENDPOINT):
            made.test()
        threading.Event().wait(3 * 2 * hurried.webhook_timeout_seconds)
        assert 1 == sum(one.headers["webhook-id"] == str(held) for one in receiver.received)
        if table == "webhook_endpoints":
            assert MAX_ATTEMPTS_OF_ENDPOINT == len(sender._results)

    eventually(lambda: not sender._results)
    assert 1 == made.row(held).attempts
    stopped.set()
    sender.wait_until_ended()
    with connections.transaction() as tx:  # the senders of other tests would attempt them
        tx.sql.execute(text("DELETE FROM webhook_deliveries"))


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
    refused_one, *others = [made.test() for _ in range(3)]
    with refused(connections, refused_one):
        sender = WebhookSender(connections, stopped)
        eventually(lambda: len(receiver.received) == 3)
        responds.set()

        eventually(lambda: {made.row(one).state for one in others} == {"delivered"})
        stopped.set()
        sender.wait_until_ended()

    assert "pending" == made.row(refused_one).state
    assert f"recording an attempt of {refused_one} failed" in caplog.text


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


def test_a_confirmed_message_is_not_repeated_by_the_process_that_knows(
    connections: Connections, alice: User, receiver: ToolReceiver, responds: threading.Event
) -> None:
    """Records fail for longer than a lease. The process that has the results does not claim their
    deliveries again, though it claims others before it records them.
    """
    stopped = threading.Event()
    hurried = replace(connections.settings, webhook_timeout_seconds=1.0)
    made = Hook(connections, alice.org_id, receiver.url)
    with connections.transaction() as tx:
        for statement in (
            """CREATE FUNCTION fail_each_record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE admin_shutdown;
            END $$""",
            """CREATE TRIGGER fail_each_record BEFORE UPDATE ON webhook_deliveries FOR EACH ROW
                WHEN (NEW.tried_at IS NOT NULL) EXECUTE FUNCTION fail_each_record()""",
        ):
            tx.sql.execute(text(statement))
    sent = [made.test() for _ in range(5)]
    responds.set()
    sender = WebhookSender(replace(connections, settings=hurried), stopped)
    eventually(lambda: len(receiver.received) == 5)
    longer_than_lease = timedelta(seconds=3)
    eventually(lambda: datetime.now(UTC) > made.row(sent[-1]).created_at + longer_than_lease)
    sent.append(made.test())
    eventually(lambda: str(sent[-1]) in {one.headers["webhook-id"] for one in receiver.received})
    with connections.transaction() as tx:
        tx.sql.execute(text("DROP FUNCTION fail_each_record CASCADE"))

    eventually(lambda: [made.row(one).state for one in sent] == ["delivered"] * 6)
    stopped.set()
    sender.wait_until_ended()
    assert 6 == len(receiver.received)


def test_a_message_that_is_being_sent_is_not_repeated_by_the_process_that_sends_it(
    connections: Connections, alice: User, receiver: ToolReceiver, responds: threading.Event
) -> None:
    """Its lease is over during the attempt: the process was frozen, or Postgres' clock was put
    forward.
    """
    stopped = threading.Event()
    with ToolReceiver(lambda _: Reply()) as other:
        slow, fast = (Hook(connections, alice.org_id, one.url) for one in (receiver, other))
        sent = [slow.test() for _ in range(3)]
        sender = WebhookSender(connections, stopped)
        eventually(lambda: len(receiver.received) == 3)
        with connections.transaction() as tx:
            over = "UPDATE webhook_deliveries SET leased_until = now() - interval '1 second'"
            tx.sql.execute(text(over))
        fast.test()
        eventually(lambda: bool(other.received))
        responds.set()

        eventually(lambda: [slow.row(one).state for one in sent] == ["delivered"] * 3)
        stopped.set()
        sender.wait_until_ended()
    assert 3 == len(receiver.received)
