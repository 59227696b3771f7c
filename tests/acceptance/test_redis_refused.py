"""Redis, or a broker of its own, refuses every connection: runs begin, go on and end all the same.

With the settings of production, and the worker's own lines of the Procfile.
"""

import signal
import threading
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise

import pytest

from chaos.journal import Journal
from chaos.system.fault_proxy import FaultProxy
from chaos.system.stack import DEFAULT, Stack
from tests.caller import Caller, client, types
from tests.waiting import eventually

pytestmark = pytest.mark.processes

#: docs/reliability.md promises it.
START_SECONDS = 3.0
#: Long enough for several of the longer and longer waits of Celery's consumer.
REFUSED_SECONDS = 6


@pytest.fixture(scope="module", params=["redis", "broker"])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A web and a worker process; `refused` is what the parameter names."""
    folder = tmp_path_factory.mktemp("stack")
    with (
        Journal(folder / "journal.jsonl") as journal,
        Stack(
            folder,
            journal,
            workers=1,
            web=1,
            pace=DEFAULT,
            separate_broker=request.param == "broker",
            environ={"ARKLOOP_WORKER_NICENESS": "0"},  # the tests compute beside it
        ) as made,
    ):
        yield made


@pytest.fixture
def caller(stack: Stack) -> Caller:
    url, token = stack.urls[0], stack.api_key()
    return Caller(url, token, client(url, token), "", "", "")


@pytest.fixture
def refused(stack: Stack) -> Iterator[FaultProxy]:
    """It refuses from now on, until the test is over."""
    proxy = stack.broker_proxy
    proxy.refuse()
    yield proxy
    proxy.pass_on()


def assert_started_in_time(caller: Caller, run_ids: list[str]) -> None:
    """Check the runs, and more of them while the machine may have kept these waiting."""
    waits = [caller.seconds_until_start(run_id) for run_id in run_ids]
    for _ in range(20):
        if sorted(waits)[-2] < START_SECONDS:
            break
        waits = [*waits[1:], caller.seconds_until_start(caller.run({"say": "hello"}))]
    assert sorted(waits)[-2] < START_SECONDS and max(waits) < 30, waits


def test_runs_start_go_on_and_take_answers(stack: Stack, caller: Caller) -> None:
    """Runs start, continue and take answers without Redis, including those that executed or waited
    when it went away.
    """
    executing = caller.run({"count": 100, "delay_ms": 100}, {"say": "end"})
    waiting = caller.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "thanks"})
    eventually(lambda: caller.get_run(waiting)["status"] == "waiting_for_input")
    stack.broker_proxy.refuse()
    try:
        late = []
        for _ in range(REFUSED_SECONDS):
            threading.Event().wait(1)
            late.append(caller.run({"say": "hello"}))
        asked = caller.get_run(waiting)
        answer = {"request_id": asked["pending_input"]["request_id"], "content": "yes"}
        assert 200 == caller.http.post(f"/v1/runs/{waiting}/input", json=answer).status_code

        assert_started_in_time(caller, late)
        eventually(lambda: caller.get_run(waiting)["status"] == "completed")
        events = caller.events(executing)
    finally:
        stack.broker_proxy.pass_on()

    assert "run.completed" == events[-1]["type"]
    assert "run.resumed" not in types(events)
    times = [datetime.fromisoformat(event["created_at"]) for event in events]
    gaps = [(b - a).total_seconds() for a, b in pairwise(times)]
    assert max(gaps) < 8  # of ten seconds


def test_a_worker_that_starts_meanwhile_executes_runs(
    stack: Stack, caller: Caller, refused: FaultProxy
) -> None:
    """It does not wait for the broker, and the one before it handed its runs over."""
    member = stack.workers[0]
    going_on = caller.run({"tool": "sleep", "args": {"seconds": 8}}, {"say": "end"})
    caller.seen(going_on, "tool.call")

    member.stop(signal.SIGTERM)
    queued = caller.run({"say": "hello"})
    member.start()
    member.wait_ready()
    eventually(lambda: caller.get_run(queued)["status"] == "completed")
    late = [caller.run({"say": "hello"}) for _ in range(3)]

    assert_started_in_time(caller, late)
    events = caller.events(going_on)
    assert "run.completed" == events[-1]["type"]
    assert ["deploy"] == [e["data"]["reason"] for e in events if e["type"] == "run.resumed"]


@pytest.mark.parametrize("stack", ["redis"], indirect=True)  # both are on this server
def test_a_password_that_is_wrong_is_a_refusal(stack: Stack, caller: Caller) -> None:
    """A password changed on the server first is a refusal: runs start, and no worker ends."""
    member, client = stack.workers[0], stack.redis_client()
    deaths, password = member.deaths, client.config_get("requirepass")["requirepass"]
    client.config_set("requirepass", "another")
    for kind in ("normal", "pubsub"):
        client.client_kill_filter(_type=kind, skipme=True)
    try:
        late = []
        for _ in range(3):
            threading.Event().wait(1)
            late.append(caller.run({"say": "hello"}))
        assert_started_in_time(caller, late)
    finally:
        client.config_set("requirepass", password)

    assert deaths == member.deaths
    assert "run.completed" == caller.events(caller.run({"say": "hello"}))[-1]["type"]


@pytest.mark.parametrize("stack", ["redis"], indirect=True)  # both are on this server
def test_a_broker_that_refuses_writes_ends_no_worker(stack: Stack, caller: Caller) -> None:
    """Workers survive a broker that turns into a replica after a failover, and find runs in
    Postgres.
    """
    member, client = stack.workers[0], stack.redis_client()
    deaths = member.deaths
    client.replicaof("127.0.0.1", 1)
    try:
        late = []
        for _ in range(3):
            threading.Event().wait(1)
            late.append(caller.run({"say": "hello"}))
        assert_started_in_time(caller, late)
    finally:
        client.replicaof("NO", "ONE")

    assert deaths == member.deaths
    first = caller.run({"say": "hello"})
    eventually(lambda: caller.get_run(first)["status"] == "completed")
