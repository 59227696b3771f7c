"""Workers take several messages of the broker at a time, each of them once and in order."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from kombu import Queue
from kombu.transport import get_transport_cls

from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.shared.config import Settings
from arkloop.shared.storage import broker_transport, celery_app, queue
from arkloop.shared.storage.broker_transport import MOST_TAKEN
from arkloop.shared.storage.connections import connect_redis
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.outage import Outage
from tests.unix_redis import unix_redis

pytestmark = pytest.mark.processes

COUNT = 3 * MOST_TAKEN - 1

#: A worker process with as many files open as 1,100 streams of models have.
_LARGE_WORKER = """
from gevent import monkey
monkey.patch_all()
import json, os, sys
from kombu import Connection, Queue
from redis import Redis
from arkloop.shared import machine
from arkloop.shared.storage import broker_transport

def drain(seconds):
    taken = []
    consumer.callbacks = [lambda body, message: (taken.append(body), message.ack())]
    try:
        connection.drain_events(timeout=seconds)
    except (TimeoutError, *connection.connection_errors) as error:
        return [type(error).__name__]
    return taken

machine.raise_file_limit()
opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(sys.argv[2]))]
broker_transport.use()
url, found = sys.argv[1], []
options = {"installation": lambda: "i", "health_check_interval": 1}
with (
    Connection(url, transport_options=options) as connection,
    Connection(url, transport_options=options) as other,
):
    queue, server = Queue("q"), Redis.from_url(url)
    with connection.Consumer(queue) as consumer:
        producer = other.Producer()
        producer.publish("first", routing_key="q", declare=[queue])
        found += drain(5), drain(0.3)
        server.client_kill_filter(_type="normal", skipme=True)
        found.append(drain(5))
        producer.publish("after a lost connection", routing_key="q", retry=True)
        found.append(drain(5))
        drain(0.1)
        server.client_pause(3_000)
        found.append(drain(2.5))  # the answer is overdue after 2 s
        producer.publish("after a silence", routing_key="q", retry=True)
        while (taken := drain(5)) == ["TimeoutError"]:
            pass
        found.append(taken)
print(json.dumps(found))
"""


class Taker:
    """A consumer as a worker has one, and the list that it takes messages from."""

    def __init__(self, client: Any, connection: Any, keys: Keys) -> None:
        self.client, self.keys = client, keys
        self.taken: list[str] = []
        self._connection = connection
        self.consumer = connection.Consumer(Queue("celery"), callbacks=[self._take])

    def _take(self, body: Any, message: Any) -> None:
        self.taken.append(body[0][0])

    def enqueue(self, run_ids: Sequence[UUID]) -> None:
        for run_id in run_ids:  # in groups of one, as idle web processes do
            queue.enqueue(self.client, self.keys, Outage(1), queue.EXECUTE, [run_id])

    def take(self, count: int, seconds: float = 60.0) -> None:
        """Take messages until there are `count`. Raises: TimeoutError."""
        while len(self.taken) < count:
            self._connection.drain_events(timeout=seconds)

    def close(self) -> None:
        """Give back what was taken: nothing has acknowledged it."""
        self._connection.close()

    @property
    def left(self) -> int:
        return int(self.client.llen(f"{self.keys.installation}:celery"))

    @property
    def redis_version(self) -> tuple[int, ...]:
        return tuple(map(int, self.client.info("server")["redis_version"].split(".")[:2]))

    def calls(self, command: str) -> int:
        stats = self.client.info("commandstats").get(f"cmdstat_{command}")
        return int(stats["calls"]) if stats else 0


@contextmanager
def taker(
    settings: Settings, url: str, free_slots: Callable[[], int] = lambda: COUNT
) -> Iterator[Taker]:
    keys = Keys()
    keys.installation = uuid4().hex
    celery = celery_app.make_celery(replace(settings, broker_url=url))
    celery_app.name_queue(celery, keys)
    celery_app.limit_messages(celery, free_slots)
    with connect_redis(url) as client, celery.connection_for_read() as connection:
        yield Taker(client, connection, keys)


@pytest.fixture
def waiting(settings: Settings, redis_url: str) -> Iterator[Taker]:
    with taker(settings, redis_url) as taken:
        yield taken


def test_messages_that_wait_are_taken_together(waiting: Taker) -> None:
    """Each comes once, the oldest first."""
    run_ids = [uuid4() for _ in range(COUNT)]
    waiting.enqueue(run_ids)
    if waiting.redis_version < (7, 0):
        pytest.skip("this Redis has no BLMPOP")
    before = waiting.calls("blmpop")

    with waiting.consumer:
        waiting.take(COUNT)

    assert list(map(str, run_ids)) == waiting.taken
    assert 0 == waiting.left
    # 1, 2, 4, 8, 10 and the last 4; one more may wait for the next one by now.
    assert 6 <= waiting.calls("blmpop") - before <= 7


def test_of_a_short_burst_other_workers_have_their_part(waiting: Taker) -> None:
    """The first worker that asks takes one message."""
    waiting.enqueue([uuid4() for _ in range(8)])

    with waiting.consumer:
        waiting.take(1)

        assert 1 == len(waiting.taken)
        assert waiting.left >= 5  # it may have asked for two more by now


@pytest.mark.parametrize(("free", "at_once"), [(0, 1), (2, 2)])
def test_a_worker_takes_as_many_as_it_has_free_slots(
    settings: Settings, redis_url: str, free: int, at_once: int
) -> None:
    """A message that is taken beyond that would wait for a slot, while others have some."""
    with taker(settings, redis_url, lambda: free) as waiting:
        waiting.enqueue([uuid4() for _ in range(COUNT)])
        with waiting.consumer:
            while waiting.left > 0:
                before = len(waiting.taken)
                waiting.take(before + 1)
                assert len(waiting.taken) - before <= at_once


def test_a_message_that_is_not_json_does_not_cost_others(
    waiting: Taker, caplog: pytest.LogCaptureFixture
) -> None:
    run_ids = [uuid4() for _ in range(COUNT)]
    waiting.enqueue(run_ids[:5])
    waiting.client.lpush(f"{waiting.keys.installation}:celery", "{")
    waiting.enqueue(run_ids[5:])

    with waiting.consumer:
        waiting.take(COUNT)

    assert list(map(str, run_ids)) == waiting.taken
    assert ["a message of the broker is not JSON: '{'"] == caplog.messages


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_process_that_connected_before_uses_it_from_now_on(scheme: str) -> None:
    get_transport_cls(scheme)

    broker_transport.use()

    assert broker_transport.Transport is get_transport_cls(scheme)


def test_a_message_that_comes_alone_is_taken_at_once(waiting: Taker) -> None:
    with waiting.consumer:
        for number in range(1, 4):
            waiting.enqueue([uuid4()])
            waiting.take(number, seconds=10)


@pytest.mark.parametrize("takes_several", [True, False])
def test_a_worker_takes_from_the_list_of_another_installation(
    waiting: Taker, monkeypatch: pytest.MonkeyPatch, takes_several: bool
) -> None:
    """Its name changes when another database takes the place of this one. What the worker has not
    begun it gives back there.
    """
    monkeypatch.setattr(broker_transport.Channel, "_gives_several", takes_several)
    with waiting.consumer:
        waiting.enqueue([uuid4()])
        waiting.take(1, seconds=10)

        waiting.keys.installation = uuid4().hex
        waiting.enqueue([uuid4() for _ in range(5)])
        waiting.take(6, seconds=10)
        assert 0 == waiting.left
        waiting.close()

    assert 6 == waiting.left


def test_no_more_are_taken_than_the_worker_has_room_for(waiting: Taker) -> None:
    """The others stay in the list, for other workers."""
    waiting.enqueue([uuid4() for _ in range(COUNT)])
    waiting.consumer.qos(prefetch_count=MOST_TAKEN + 3)

    with waiting.consumer:
        waiting.take(MOST_TAKEN + 3)
        with pytest.raises(TimeoutError):
            waiting.take(MOST_TAKEN + 4, seconds=0.2)

    assert COUNT - MOST_TAKEN - 3 == waiting.left


@pytest.mark.parametrize("reason", ["it is older than 7.0", "the user has no right"])
def test_a_redis_that_gives_one_at_a_time_is_asked_for_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    is_old = reason == "it is older than 7.0"
    options = ("--rename-command", "BLMPOP", "") if is_old else ()
    monkeypatch.setattr(broker_transport.Channel, "_gives_several", True)
    with (
        unix_redis(tmp_path, *options) as path,
        taker(settings, f"unix://:p%40ss@{path}") as waiting,
    ):
        if not is_old:
            waiting.client.execute_command("ACL", "SETUSER", "default", "-blmpop")
        run_ids = [uuid4() for _ in range(COUNT)]
        waiting.enqueue(run_ids)

        with waiting.consumer:
            waiting.take(COUNT)

        assert list(map(str, run_ids)) == waiting.taken
        assert waiting.calls("brpop") >= COUNT


@pytest.mark.parametrize("descriptors", [0, 1_100])
def test_a_worker_with_many_connections_takes_messages(tmp_path: Path, descriptors: int) -> None:
    """Its connection to the broker may have a descriptor that select() cannot wait for, and may be
    lost or silent as any other.
    """
    with EmbeddedRedis(tmp_path / "redis", persist=False) as server:
        ended = subprocess.run(
            [sys.executable, "-c", _LARGE_WORKER, server.url, str(descriptors)],
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert "" == ended.stderr
    assert [
        ["first"],
        ["TimeoutError"],
        ["ConnectionError"],
        ["after a lost connection"],
        ["TimeoutError"],
        ["after a silence"],
    ] == json.loads(ended.stdout)
