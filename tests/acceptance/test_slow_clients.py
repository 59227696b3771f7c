"""Clients that take nothing, send little, or are too many: only they themselves notice."""

import fcntl
import resource
import socket
import struct
import termios
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from uuid import UUID

import psutil
import pytest
from sqlalchemy import text

from tests.caller import Caller
from tests.system import System
from tests.waiting import eventually
from tests.web_server import WebServer

pytestmark = pytest.mark.processes

HALF_A_REQUEST_LINE = b"GET /healthz HT"
WHOLE_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
STALLED = 30


@pytest.fixture(scope="module")
def server(system: System) -> Iterator[WebServer]:
    """A web server that nobody else uses."""
    with system.one_more_web_server() as started:
        yield started


@pytest.fixture(scope="module")
def reader(user: Caller, server: WebServer) -> Caller:
    return user.at(server.url)


def worker_of(server: WebServer) -> psutil.Process:
    """Return gunicorn's one process that serves."""
    [process] = psutil.Process(server.pid).children()
    return process


def stall(server: WebServer, user: Caller, run_id: str) -> socket.socket:
    """Connect, follow the run and never read; the server has begun to respond."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.settings.port))
    head = f"GET /v1/runs/{run_id}/events HTTP/1.1\r\nHost: localhost\r\n"
    connection.sendall(f"{head}Authorization: Bearer {user.token}\r\n\r\n".encode())
    return connection


def unread_bytes(connection: socket.socket) -> int:
    """Return how much has arrived and waits in the client's own buffer."""
    answer = fcntl.ioctl(connection.fileno(), termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("i", answer)[0])


@contextmanager
def stalled(server: WebServer, user: Caller, run_id: str, count: int) -> Iterator[None]:
    """Open `count` clients that take nothing; each has been sent something."""
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(stall(server, user, run_id)) for _ in range(count)]
        eventually(lambda: all(unread_bytes(client) > 2000 for client in clients))
        yield


def seqs(user: Caller, run_id: str, **params: str) -> list[int]:
    return [event["seq"] for event in user.events(run_id, **params)]


def test_who_takes_nothing_delays_nobody(user: Caller, reader: Caller, server: WebServer) -> None:
    """While others of the same run stall, its followers get all of it as it comes."""
    run_id = user.run({"say": "x" * 2048, "repeat": 1500}, {"say": "end"})

    with stalled(server, user, run_id, STALLED), ThreadPoolExecutor(3) as pool:
        followers = list(pool.map(lambda _: seqs(reader, run_id), range(3)))

    assert "completed" == user.ended(run_id)["status"]
    last_seq = user.get_run(run_id)["last_seq"]
    assert last_seq > 1500
    assert [list(range(1, last_seq + 1))] * 3 == followers


def test_who_never_ends_a_request_is_let_go(server: WebServer) -> None:
    """Hundreds of half request lines and idle connections: the service answers others, and ends
    them.
    """
    with ExitStack() as open_ones:

        def connect(count: int, sent: bytes = b"") -> Sequence[socket.socket]:
            clients = [open_ones.enter_context(server.connect()) for _ in range(count)]
            for client in clients:
                client.sendall(sent)
            return clients

        halves = connect(300, HALF_A_REQUEST_LINE)
        idle = connect(300, WHOLE_REQUEST)
        silent = connect(100)

        assert server.answers()
        for client in (*halves, *idle, *silent):
            assert_ended(client)
        assert server.answers()


def assert_ended(client: socket.socket) -> None:
    """Check that the server closes the connection, perhaps after a response."""
    client.settimeout(60)
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        pass


def test_many_who_come_at_once_are_all_served(
    system: System, user: Caller, server: WebServer
) -> None:
    """Hundreds ask for a stream in the same moment: none gets a 503."""
    run_id = user.run({"tool": "ask_user", "args": {"question": "?"}})
    cursor = user.until(run_id, "status", "waiting_for_input")["last_seq"]
    ask = (
        f"GET /v1/runs/{run_id}/events?after_seq={cursor} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {user.token}\r\n\r\n"
    ).encode()
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(server.connect()) for _ in range(400)]
        for client in clients:
            client.sendall(ask)

        answers = {client.recv(65536)[:12] for client in clients}
        channel = system.connections.keys.news(run_id)
        redis = system.connections.redis
        eventually(lambda: [(channel, 1)] == redis.pubsub_numsub(channel))

    assert {b"HTTP/1.1 200"} == answers
    user.cancel(run_id)


def test_a_server_without_descriptors_recovers(system: System) -> None:
    """More clients than it can have: it serves again when they leave, by itself."""
    # Without the setting only root counts the descriptors.
    with system.one_more_web_server(ARKLOOP_CORE_DUMPS="1") as server:
        process = worker_of(server)
        _, hard = process.rlimit(resource.RLIMIT_NOFILE)
        process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 20, hard))
        with ExitStack() as open_ones:
            for _ in range(60):
                client = open_ones.enter_context(server.connect())
                client.sendall(HALF_A_REQUEST_LINE)
            eventually(lambda: process.num_fds() >= process.rlimit(resource.RLIMIT_NOFILE)[0] - 1)

        eventually(server.answers)
        assert process == worker_of(server)


#: Of the web process, for one client that takes nothing of a run that is far larger.
MOST_BYTES_EACH = 512 * 1024

_MANY_DELTAS = """
INSERT INTO run_events (run_id, seq, type, payload)
SELECT :run_id, seq, 'message.delta', '{"seq":' || seq || ',"type":"message.delta","data":'
    || '{"content":"' || repeat('x', :characters) || '"},"created_at":"2026-01-01T00:00:00.000Z"}'
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS seq
"""


@pytest.mark.parametrize("characters", [2048, 32_768])
def test_who_takes_nothing_costs_little(system: System, user: Caller, characters: int) -> None:
    """The web process holds at most a piece of a 10 MB run for each client that takes nothing."""
    with system.one_more_web_server() as server:  # whose memory no other test has stretched
        reader = user.at(server.url)
        run_id = user.run({"tool": "ask_user", "args": {"question": "?"}})
        first = user.until(run_id, "status", "waiting_for_input")["last_seq"] + 1
        deltas = {
            "run_id": UUID(run_id),
            "first": first,
            "last": first + 10_240_000 // characters,
            "characters": characters,
        }
        with system.connections.transaction() as tx:
            tx.sql.execute(text(_MANY_DELTAS), deltas)
        whole = list(range(1, deltas["last"] + 1))
        assert whole == seqs(reader, run_id, follow="false")
        process = worker_of(server)
        before = process.memory_info().rss

        with stalled(server, user, run_id, STALLED):
            assert whole == seqs(reader, run_id, follow="false")
            grown = process.memory_info().rss - before

        user.cancel(run_id)
        assert grown <= STALLED * MOST_BYTES_EACH


#: Of the web process, whatever many clients hold: 32 MiB, and what is being read meanwhile.
MOST_BYTES_OF_FRAMES = 250_000_000

_ONE_LONG_EVENT = """
INSERT INTO run_events (run_id, seq, type, payload)
SELECT :run_id, :seq, 'message.delta', '{"seq":' || :seq || ',"type":"message.delta","data":'
    || '{"content":"' || repeat('😀', 4000000) || '"},"created_at":"2026-01-01T00:00:00.000Z"}'
"""


def test_clients_that_hold_long_frames_are_cut_for_others(system: System, user: Caller) -> None:
    """40 clients take nothing of frames of 16 MB: the memory is bounded, and others are served."""
    with system.one_more_web_server() as server:  # whose memory no other test has stretched
        reader = user.at(server.url)
        run_ids = [user.run({"tool": "ask_user", "args": {"question": "?"}}) for _ in range(4)]
        seq = user.until(run_ids[0], "status", "waiting_for_input")["last_seq"] + 1
        with system.connections.transaction() as tx:
            for run_id in run_ids:
                user.until(run_id, "status", "waiting_for_input")
                tx.sql.execute(text(_ONE_LONG_EVENT), {"run_id": UUID(run_id), "seq": seq})
        assert seq == seqs(reader, run_ids[0], follow="false")[-1]
        process = worker_of(server)
        before = process.memory_info().rss

        with ExitStack() as open_ones:
            for run_id in run_ids:
                for _ in range(10):
                    open_ones.enter_context(stall(server, user, run_id))
            most = 0
            for _ in range(3):
                assert seq == seqs(reader, run_ids[-1], follow="false")[-1]
                most = max(most, process.memory_info().rss - before)

        for run_id in run_ids:  # Postgres may still be reading for those who have left
            cancel = f"/v1/runs/{run_id}:cancel"
            eventually(lambda path=cancel: user.http.post(path).is_success, seconds=150)  # type: ignore[misc]  # its default has no type
        assert most <= MOST_BYTES_OF_FRAMES
