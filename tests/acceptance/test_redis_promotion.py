"""A Redis whose replica is promoted under load, behind HAProxy, which leads to the primary."""

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.cli.dev.embedded_server import free_port
from tests.caller import Caller, Event, types
from tests.proxies import redis_proxy
from tests.sentinels import primary_port, returned_primaries_stay, sentinels
from tests.system import System, running_system
from tests.waiting import eventually

pytestmark = pytest.mark.proxies

CLIENTS = 6


class Pair:
    """A primary and its replica, which have one password, and the address that leads to one."""

    def __init__(self, folder: Path) -> None:
        self.servers = [EmbeddedRedis(folder / name, persist=False) for name in ("a", "b")]
        self.password = secrets.token_hex(16)
        for server in self.servers:
            server._password = self.password
        self.url = f"redis://:{self.password}@127.0.0.1:{free_port()}/0"

    def fail_over(self) -> None:
        """Lose the primary, and promote the replica."""
        self.lose()
        with Redis.from_url(self.servers[1].url) as client:
            client.replicaof("NO", "ONE")

    def lose(self) -> None:
        """Kill the primary, as the loss of its host does."""
        pid = self.servers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def restart_lost(self) -> None:
        """Start what was the primary again, as its supervisor does: an empty one, and a primary."""
        lost = self.servers[0]
        lost.stop()  # it is dead: this only takes note of that
        lost.start()
        with Redis.from_url(lost.url) as client:
            client.config_set("masterauth", self.password)

    def leads_to(self) -> int:
        """Return the port of the server to which a new connection leads."""
        with Redis.from_url(self.url) as client:
            return int(client.config_get("port")["port"])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    with ExitStack() as stack:
        for server in made.servers:
            stack.enter_context(server)
        with Redis.from_url(made.servers[1].url) as replica:
            replica.config_set("masterauth", made.password)
            replica.replicaof("127.0.0.1", str(made.servers[0].port))
            eventually(lambda: replica.info("replication")["master_link_status"] == "up")
        ports = [server.port for server in made.servers]
        stack.enter_context(redis_proxy(tmp_path, made.url, ports))
        yield made


@pytest.fixture
def promoted(pair: Pair, new_database: Callable[[], str], tmp_path: Path) -> Iterator[System]:
    with running_system(new_database, tmp_path, pair.url, web=1) as system:
        yield system


class Talk(threading.Thread):
    """A client that starts a run, follows it to its end, starts the next one, and so on."""

    def __init__(self, caller: Caller, stopping: threading.Event) -> None:
        super().__init__(daemon=True)
        self.caller, self.stopping = caller, stopping
        self.runs: list[list[Event]] = []
        self.seconds: list[float] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            began = time.monotonic()
            run_id = self.caller.run({"count": 20, "delay_ms": 20})
            self.runs.append(self.caller.events(run_id))
            self.seconds.append(time.monotonic() - began)


@contextmanager
def talking(system: System) -> Iterator[list[Talk]]:
    """Let the clients start runs, from before the block until its end."""
    stopping = threading.Event()
    talks = [Talk(system.caller(), stopping) for _ in range(CLIENTS)]
    for talk in talks:
        talk.start()
    eventually(lambda: all(len(talk.runs) >= 2 for talk in talks))
    yield talks
    stopping.set()
    for talk in talks:
        talk.join(100)
        assert not talk.is_alive()


def continue_all(talks: list[Talk]) -> None:
    """Wait until each of the clients has had three more runs."""
    before = [len(talk.runs) for talk in talks]
    pairs = list(zip(talks, before, strict=True))
    eventually(lambda: all(len(talk.runs) >= count + 3 for talk, count in pairs))


def judge(talks: list[Talk]) -> None:
    """Require that every run has each number once, one start, and its end; print their times."""
    for events in (events for talk in talks for events in talk.runs):
        assert [*range(1, len(events) + 1)] == [event["seq"] for event in events]
        assert ("run.started", "run.completed", 1) == (
            *(events[0]["type"], events[-1]["type"]),
            types(events).count("run.started"),
        )
    print("seconds of a run:", sorted(round(one, 1) for talk in talks for one in talk.seconds))


def test_a_replica_is_promoted_under_load(pair: Pair, promoted: System) -> None:
    """No request fails, no stream breaks off or lacks a number, and no run is executed twice."""
    with talking(promoted) as talks:
        pair.fail_over()
        continue_all(talks)
    judge(talks)
    with Redis.from_url(pair.servers[1].url) as primary:
        caller = talks[0].caller
        run_id = caller.run({"say": "hello"})
        caller.ended(run_id)
        eventually(lambda: any(run_id.encode() in key for key in primary.scan_iter("*:events")))


def test_sentinel_promotes_the_replica_and_the_lost_primary_returns(
    pair: Pair, promoted: System, tmp_path: Path
) -> None:
    """What was the primary comes back as an empty primary, until Sentinel makes it a replica.
    Nothing is lost, and no new connection leads to it meanwhile.
    """
    lost, replica = pair.servers
    led_to: list[tuple[str, int]] = []
    with sentinels(tmp_path, lost, pair.password) as watching:
        with talking(promoted) as talks:
            pair.lose()
            eventually(lambda: primary_port(watching[0]) == replica.port)
            continue_all(talks)
            with Redis.from_url(lost.url, decode_responses=True) as returned:

                def follows() -> bool:
                    port = pair.leads_to()
                    try:
                        state = returned.info("replication")
                    except RedisConnectionError:  # Sentinel closes all when it makes it a replica
                        return False
                    led_to.append((state["role"], port))
                    return state.get("master_link_status") == "up"

                with returned_primaries_stay(watching):
                    pair.restart_lost()
                    # HAProxy has looked at it more than once by then.
                    eventually(lambda: follows() or len(led_to) >= 80)
                    assert {("master", replica.port)} == {*led_to}
                eventually(follows)
            continue_all(talks)
        judge(talks)
    assert {replica.port} == {port for _, port in led_to}


def test_a_server_whose_name_is_gone_does_not_stop_the_other(tmp_path: Path) -> None:
    """The proxy starts, and leads to the primary, while nameservers do not know the replica."""
    with EmbeddedRedis(tmp_path / "a", persist=False) as server:
        password = urlsplit(server.url).password
        url = f"redis://:{password}@127.0.0.1:{free_port()}/0"
        with redis_proxy(tmp_path, url, [server.port]), Redis.from_url(url) as client:
            assert "redis-2:6379" in (tmp_path / "proxy.conf").read_text()
            assert server.port == int(client.config_get("port")["port"])
