"""The sender: signed messages, and receivers that hang, redirect, flood or are forbidden."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row, text
from standardwebhooks import Webhook

from arkloop.shared.client_data import MAX_PAIRS, MAX_VALUE_LENGTH
from arkloop.shared.config import Settings
from arkloop.shared.delivery import deliveries, endpoints, messages
from arkloop.shared.events.types import RunCompleted
from arkloop.shared.ids import new_id
from arkloop.shared.runs.endings import Ending, RunEnder
from arkloop.shared.runs.states import RunState
from arkloop.shared.security.kept_connections import IDLE_SECONDS
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.group_commit import LARGE_SIZE
from arkloop.worker.webhooks.sender import MAX_ATTEMPTS_OF_ENDPOINT, WebhookSender
from tests.clients import User
from tests.closed_port import closed_port
from tests.query_plans import noted
from tests.stored_runs import USED, StoredRuns, numbered
from tests.tool_receiver import Received, Reply, ToolReceiver
from tests.waiting import eventually

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """A receiver has three seconds, and each delivery one attempt in an hour."""
    return replace(
        settings,
        allowed_networks=("127.0.0.1/32",),
        webhook_timeout_seconds=3.0,
        webhook_retry_seconds=(3600.0,),
    )


@pytest.fixture(scope="module", autouse=True)
def sender(connections: Connections) -> Iterator[WebhookSender]:
    stopped = threading.Event()
    yield WebhookSender(connections, stopped)
    stopped.set()


@pytest.fixture
def receiver() -> Iterator[ToolReceiver]:
    with ToolReceiver(lambda _: Reply()) as made:
        yield made


class Hook:
    """An endpoint of an org."""

    def __init__(self, connections: Connections, org_id: UUID, url: str) -> None:
        self._connections, self._org_id = connections, org_id
        with connections.transaction() as tx:
            row, self.secret = endpoints.create(
                tx, org_id, url=url, description="", event_types=endpoints.EVENT_TYPES
            )
        self.id = UUID(str(row.id))

    def test(self) -> UUID:
        """Queue a message."""
        with self._connections.transaction() as tx:
            return UUID(str(deliveries.test(tx, self._org_id, self.id).id))

    def tried(self, delivery_id: UUID) -> Row[Any]:
        """Wait for the first attempt, and return what is known then."""
        eventually(lambda: self.row(delivery_id).tried_at is not None)
        return self.row(delivery_id)

    def row(self, delivery_id: UUID) -> Row[Any]:
        with self._connections.reading() as sql:
            return deliveries.find(sql, self._org_id, self.id, delivery_id)

    def rotate(self, overlap_seconds: float) -> str:
        with self._connections.transaction() as tx:
            return endpoints.rotate(tx, self._org_id, self.id, overlap_seconds)[1]


Made = Callable[[str], Hook]


@pytest.fixture
def hook(connections: Connections, alice: User) -> Made:
    return lambda url: Hook(connections, alice.org_id, url)


def verified(request: Received, secret: str) -> dict[str, Any]:
    return dict(Webhook(secret).verify(request.body, dict(request.headers)))


def test_the_official_library_verifies_messages_by_either_secret(
    receiver: ToolReceiver, hook: Made
) -> None:
    """While a secret is replaced, receivers with the new or with the former one verify messages."""
    made = hook(receiver.url)
    new = made.rotate(60)

    row = made.tried(made.test())

    [request] = receiver.received
    expected = {"endpoint_id": str(made.id)}
    for secret in (made.secret, new):
        message = verified(request, secret)
        assert ("webhook.test", expected) == (message["type"], message["data"])
    assert str(row.id) == request.headers["webhook-id"]
    assert ("delivered", 200, None) == (row.state, row.response_status, row.error)


@pytest.mark.parametrize("character", ["\1", "😀", '"'])
def test_no_message_is_larger_than_20_kb(
    receiver: ToolReceiver, hook: Made, stored: StoredRuns, character: str
) -> None:
    """With the longest answer, metadata and end user that there can be, however JSON writes them;
    what is left out is null, in the API too, and the largest parts are left out first.
    """
    made = hook(receiver.url)
    for pairs in (0, MAX_PAIRS):
        claim = stored.claimed()
        metadata = {f"{n:064}": character * MAX_VALUE_LENGTH for n in range(pairs)}
        stored.set(claim.run_id, metadata=metadata, end_user_id=character * 200)
        answer = (character * 8192).encode()[:8192].decode(errors="ignore")
        assert stored.finish(claim, message=(new_id(), answer))

    eventually(lambda: len(receiver.received) == 2)

    for request in receiver.received:
        assert len(request.body) <= 20_000
        data = verified(request, made.secret)["data"]
        delivery = made.row(UUID(request.headers["webhook-id"]))
        assert data == messages.data(delivery)
        assert "run.completed" == delivery.type
    found = [verified(request, made.secret)["data"] for request in receiver.received]
    whole, cut = sorted(found, key=lambda data: str(data["run_id"]))
    assert {} == whole["metadata"]
    assert (whole["output"] is None) == (character == "\1")
    assert cut["metadata"] is None
    assert cut["output"] == whole["output"]


def test_a_redirect_is_not_followed(receiver: ToolReceiver, hook: Made) -> None:
    """A redirect is a failure, wherever it leads."""
    with ToolReceiver(lambda _: Reply()) as target:
        receiver.answer = lambda _: Reply(status=302, headers=(("Location", target.url),))
        made = hook(receiver.url)
        row = made.tried(made.test())

        assert ("pending", 302) == (row.state, row.response_status)
        assert [] == target.received


def test_a_forbidden_address_is_not_connected_to(receiver: ToolReceiver, hook: Made) -> None:
    """The policy for addresses holds at each attempt, not only when the endpoint is made."""
    made = hook(f"http://localhost:{receiver.port}/")
    with made._connections.transaction() as tx:
        url = f"http://127.0.0.2:{receiver.port}/"
        tx.sql.execute(text("UPDATE webhook_endpoints SET url = :url"), {"url": url})

    row = made.tried(made.test())

    assert ("pending", None) == (row.state, row.response_status)
    assert "not on the public network" in row.error
    assert [] == receiver.received


def test_an_unreachable_receiver_is_a_failure(hook: Made) -> None:
    """Nobody listens there: the delivery is tried again later."""
    made = hook(f"http://127.0.0.1:{closed_port()}/")

    row = made.tried(made.test())

    assert ("pending", "The server is unreachable.") == (row.state, row.error)


def test_a_flood_is_not_read(hook: Made) -> None:
    """A few kilobytes of an endless response are read, and its status counts."""
    sent = 0
    with socket.create_server(("127.0.0.1", 0)) as server:

        def flood() -> None:
            nonlocal sent
            connection, _ = server.accept()
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
            try:
                while True:
                    sent += connection.send(b"x" * 65_536)
            except OSError:
                connection.close()

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        made = hook(f"http://127.0.0.1:{server.getsockname()[1]}/")
        row = made.tried(made.test())
        thread.join(60)

    assert ("delivered", 200) == (row.state, row.response_status)
    assert sent < 32 * 1024 * 1024


@dataclass
class Listener:
    """A receiver that confirms all that arrives over its first connection."""

    url: str = ""
    arrived: bytes = b""
    is_closed: bool = False


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    with socket.create_server(("127.0.0.1", 0)) as server:
        made.url = f"http://127.0.0.1:{server.getsockname()[1]}/"

        def confirm() -> None:
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(65_536):
                    made.arrived += data
                    if data.endswith(b"}}"):
                        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            made.is_closed = True

        threading.Thread(target=confirm, daemon=True).start()
        yield made


def test_messages_to_a_receiver_share_a_connection(hook: Made, listener: Listener) -> None:
    """A message shortly after another one needs no new handshake; later the connection ends."""
    made = hook(listener.url)

    states = [made.tried(made.test()).state for _ in range(3)]

    assert ["delivered"] * 3 == states
    assert 3 == listener.arrived.count(b"POST /")
    eventually(lambda: listener.is_closed, seconds=IDLE_SECONDS + 10)


def test_a_sender_that_stops_closes_its_connections(connections: Connections) -> None:
    """They are closed although they could still be used."""
    stopped = threading.Event()
    sender = WebhookSender(connections, stopped)
    kept = sender._kept.of("endpoint")
    connection = kept.new()
    kept.give_back("http://127.0.0.1", connection)

    stopped.set()

    eventually(lambda: connection.backend.is_cut, seconds=IDLE_SECONDS / 2)


def test_attempts_that_end_together_share_their_statements(
    connections: Connections, receiver: ToolReceiver, hook: Made, alice: User
) -> None:
    """Each claim takes several of the messages that are due for a receiver, and what comes of them
    is recorded together.
    """
    made = hook(receiver.url)
    with noted(connections) as statements:
        with connections.transaction() as tx:
            due = [deliveries.test(tx, alice.org_id, made.id).id for _ in range(80)]
        for one in due:
            made.tried(UUID(str(one)))

    claims = [sql for sql, _ in statements if "make_interval(secs => %(lease_seconds)s)" in sql]
    records = [sql for sql, _ in statements if "%(are_delivered)s" in sql]
    assert len(claims) < 30  # 40 if each pair of ends had one
    assert 0 < len(records) < 30


@pytest.mark.parametrize(("status", "state"), [(200, "delivered"), (500, "pending")])
@pytest.mark.parametrize("is_cut", [False, True])
def test_the_status_counts_of_a_response_without_an_end(
    hook: Made, status: int, state: str, is_cut: bool
) -> None:
    """The receiver has taken the message, whatever comes of the rest of its response."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def begin() -> None:
            connection, _ = server.accept()
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 %d .\r\nContent-Length: 9\r\n\r\nshort" % status)
            while not is_cut and connection.recv(65_536):
                pass
            connection.close()

        thread = threading.Thread(target=begin, daemon=True)
        thread.start()
        made = hook(f"http://127.0.0.1:{server.getsockname()[1]}/")
        row = made.tried(made.test())
        thread.join(60)

    assert (state, status) == (row.state, row.response_status)


def test_a_receiver_that_hangs_keeps_no_other_one_waiting(
    receiver: ToolReceiver, hook: Made
) -> None:
    """While one receiver lets many messages hang, another one gets its own; of the first, few are
    in progress at a time.
    """
    hanging = threading.Event()

    def hang(_: Received) -> Reply | None:
        hanging.wait(10)
        return None

    with ToolReceiver(hang) as silent:
        slow, other = hook(silent.url), hook(receiver.url)
        began = time.monotonic()
        stuck = [slow.test() for _ in range(3 * MAX_ATTEMPTS_OF_ENDPOINT)]
        eventually(lambda: len(silent.received) >= MAX_ATTEMPTS_OF_ENDPOINT)
        fine = [other.test() for _ in range(3)]
        rows = [other.tried(one) for one in fine]
        in_progress = len(silent.received)
        took = time.monotonic() - began
        hanging.set()

    assert ["delivered"] * 3 == [row.state for row in rows]
    # Unless this took longer than the time of an attempt, on a machine that is very busy.
    assert in_progress <= MAX_ATTEMPTS_OF_ENDPOINT or took > 1
    late = slow.tried(stuck[0])
    assert ("pending", None) == (late.state, late.response_status)


def test_the_endpoints_of_an_org_are_known(
    connections: Connections, sender: WebhookSender, hook: Made, alice: User
) -> None:
    """The end of a run is stored for each of them once more."""
    made = hook("http://127.0.0.1/")

    eventually(lambda: sender.endpoints_of(alice.org_id) == 1)
    assert 0 == sender.endpoints_of(new_id())
    with connections.transaction() as tx:
        endpoints.change(tx, alice.org_id, made.id, {"enabled": False})
    eventually(lambda: sender.endpoints_of(alice.org_id) == 0)


def test_of_very_many_orgs_each_is_taken_to_have_one_endpoint(
    connections: Connections, hook: Made, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are too many orgs to know each one's number, the ends of their runs are still
    written together.
    """
    monkeypatch.setattr(endpoints, "MAX_KNOWN_ORGS", 0)
    hook("http://127.0.0.1/")
    stopped, claim = threading.Event(), stored.claimed()
    sender = WebhookSender(connections, stopped)
    eventually(lambda: sender.endpoints_of(claim.org_id) > 0)
    stopped.set()

    last = numbered(claim.last_seq, RunCompleted(None, USED.usage, USED.cost_usd, "stop"))
    ending = Ending(claim=claim, state=RunState.COMPLETED, stored=last, totals=USED)
    assert 1 == sender.endpoints_of(new_id())
    assert RunEnder(connections, sender.endpoints_of)._size(ending) < LARGE_SIZE


def test_the_body_is_the_same_in_every_attempt(
    connections: Connections, receiver: ToolReceiver, hook: Made
) -> None:
    """A repeated message has the same id and the same bytes."""
    receiver.answer = lambda _: Reply(status=500)
    made = hook(receiver.url)
    delivery_id = made.test()
    made.tried(delivery_id)
    receiver.answer = lambda _: Reply()
    with connections.transaction() as tx:
        tx.sql.execute(text("UPDATE webhook_deliveries SET due_at = now()"))

    eventually(lambda: made.row(delivery_id).state == "delivered")

    first, second = receiver.received
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    assert ["type", "timestamp", "data"] == list(json.loads(first.body))
