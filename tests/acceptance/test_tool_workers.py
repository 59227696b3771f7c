"""Tools in the customer's network: they fetch their calls, and nothing connects to them."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.caller import Caller, script
from tests.system import System
from tests.tool_worker import ECHO, PAY, ToolWorker
from tests.waiting import eventually

pytestmark = pytest.mark.processes

Run = Callable[..., str]


@pytest.fixture
def pool() -> str:
    return f"pool-{secrets.token_hex(4)}"


@pytest.fixture
def worker(user: Caller, pool: str) -> ToolWorker:
    """A worker that has registered its tools, and a persona that has them."""
    made = ToolWorker.of(user, pool)
    made.poll(wait_seconds=0)
    user.made("/v1/personas", {"key": pool, "tool_workers": [pool], "timeout_seconds": 60})
    return made


@pytest.fixture
def run(user: Caller, worker: ToolWorker) -> Run:
    """Call it for a run whose model calls these tools, side by side."""

    def start(*tools: str, **fields: Any) -> str:
        calls = [{"tool": tool, "args": {"text": f"{tool} it"}} for tool in tools]
        thread_id = user.thread(script({"tools": calls}, {"say": "ok"}))
        return user.start(thread_id, persona_id=worker.pool, **fields)

    return start


def result(user: Caller, run_id: str) -> tuple[str, bool]:
    """Wait for the end of the run; return the result of its one call."""
    (found,) = [e["data"] for e in user.events(run_id) if e["type"] == "tool.result"]
    return found["output"], found["is_error"]


def test_a_worker_executes_a_call(user: Caller, worker: ToolWorker, run: Run) -> None:
    """An idle worker is given the call, with its arguments and on whose behalf it is made."""
    calls: list[dict[str, Any]] = []
    idle = threading.Thread(target=lambda: calls.append(worker.take()))
    idle.start()
    run_id = run("echo", end_user_id="zoe", metadata={"plan": "pro"})
    idle.join(60)

    (call,) = calls
    assert {"text": "echo it"} == call["arguments"]
    assert ("echo", 1, run_id, user.org_id, "zoe", {"plan": "pro"}) == tuple(
        call[name] for name in ("tool", "fence", "run_id", "org_id", "end_user_id", "metadata")
    )
    assert f"{run_id}:{call['tool_call_id']}" == call["idempotency_key"]
    assert 200 == worker.complete(call, "echoed").status_code
    assert 200 == worker.complete(call, "echoed").status_code  # it may be sent again
    assert ("echoed", False) == result(user, run_id)


def test_a_failed_call_is_a_result(user: Caller, worker: ToolWorker, run: Run) -> None:
    """The model reads the worker's error, and the run continues."""
    run_id = run("pay")

    worker.fail(worker.take(), "The account is empty.")

    assert ("The account is empty.", True) == result(user, run_id)


def test_nobody_fetches_the_call(user: Caller, pool: str) -> None:
    """The model reads that no worker is connected, and the call can never be executed later."""
    worker = ToolWorker.of(user, pool, tools=[{**PAY, "timeout_seconds": 1}])
    worker.poll(wait_seconds=0)
    user.made("/v1/personas", {"key": pool, "tool_workers": [pool]})
    call = {"tool": "pay", "args": {"text": "it"}}

    run_id = user.start(user.thread(script(call, {"say": "ok"})), persona_id=pool)
    output, is_error = result(user, run_id)

    assert is_error and f"No worker of pool '{pool}' is connected" in output
    assert [] == worker.poll(wait_seconds=0)["calls"]


def test_nobody_fetches_the_call_of_a_lost_worker(user: Caller, pool: str) -> None:
    """The call may be repeated, and may have taken effect: the model reads that nobody knows."""
    worker = ToolWorker.of(user, pool, tools=[{**ECHO, "timeout_seconds": 6}])
    worker.poll(wait_seconds=0)
    user.made("/v1/personas", {"key": pool, "tool_workers": [pool]})
    call = {"tool": "echo", "args": {"text": "it"}}

    run_id = user.start(user.thread(script(call, {"say": "ok"})), persona_id=pool)
    worker.take(lease_seconds=1)
    output, is_error = result(user, run_id)

    assert is_error and "may or may not have taken effect" in output
    assert [] == worker.poll(wait_seconds=0)["calls"]


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_a_worker_falls_silent(
    user: Caller, worker: ToolWorker, run: Run, is_idempotent: bool
) -> None:
    """After its lease, a call that may be repeated goes to another worker; else its outcome is
    unknown. What the silent worker reports later has no effect.
    """
    run_id = run("echo" if is_idempotent else "pay")
    silent, other = worker, replace(worker, id="other")
    call = silent.take(lease_seconds=1)

    if is_idempotent:
        again = other.take()
        assert (call["call_id"], 2) == (again["call_id"], again["fence"])
        late = silent.complete(call, "late")
        other.complete(again, "in time")
        assert ("in time", False) == result(user, run_id)
    else:
        output, is_error = result(user, run_id)
        late = silent.complete(call, "late")
        assert is_error and "may or may not have taken effect" in output
        assert [] == other.poll(wait_seconds=0)["calls"]

    assert (409, "tool_workers.stale_call") == (late.status_code, late.json()["code"])


def test_a_worker_whose_connection_closes_is_gone(
    user: Caller, worker: ToolWorker, run: Run
) -> None:
    """A heartbeat's closed connection gives the call away long before the lease ends."""
    run_id = run("echo")
    call = worker.take(lease_seconds=300)

    worker.leave(call, lease_seconds=300)
    again = replace(worker, id="other").take()

    worker.complete(again, "done")
    assert ("done", False) == result(user, run_id)


def test_a_worker_with_a_heartbeat_for_each_call_may_close_one(
    user: Caller, worker: ToolWorker, run: Run
) -> None:
    """A heartbeat's closed connection leaves the calls that it did not name with their worker."""
    run("echo", "echo")
    kept, lost = worker.take(lease_seconds=300), worker.take(lease_seconds=300)
    worker.heartbeat(kept, lease_seconds=300)

    worker.leave(lost, lease_seconds=300)
    again = replace(worker, id="other").take()

    assert lost["call_id"] == again["call_id"]
    assert {"cancelled": [], "lost": []} == worker.heartbeat(kept)
    assert 200 == worker.complete(kept, "done").status_code


def test_a_call_that_takes_too_long_is_stopped(user: Caller, pool: str) -> None:
    """The model reads that the call is not over, and its worker is asked to stop."""
    worker = ToolWorker.of(user, pool, tools=[{**PAY, "timeout_seconds": 6}])
    worker.poll(wait_seconds=0)
    user.made("/v1/personas", {"key": pool, "tool_workers": [pool]})
    call = {"tool": "pay", "args": {"text": "it"}}
    run_id = user.start(user.thread(script(call, {"say": "ok"})), persona_id=pool)
    taken = worker.take()

    output, is_error = result(user, run_id)

    assert is_error and "did not finish within 6 s" in output
    assert [taken["call_id"]] == worker.heartbeat(taken)["cancelled"]


def test_a_tool_is_approved_by_either_name(user: Caller, worker: ToolWorker) -> None:
    """A tool that has got the name of its pool is still one that a person must approve."""
    other = replace(worker, pool=f"{worker.pool}-2")
    other.poll(wait_seconds=0)
    pools = {"tool_workers": [worker.pool, other.pool], "require_approval": ["pay"]}
    user.made("/v1/personas", {"key": other.pool, **pools})
    call = {"tool": f"{other.pool}_pay", "args": {"text": "it"}}
    run_id = user.start(user.thread(script(call, {"say": "ok"})), persona_id=other.pool)
    user.until(run_id, "status", "waiting_for_input")

    user.answer(run_id, "yes")
    other.complete(other.take(), "paid")

    assert ("paid", False) == result(user, run_id)


def test_heartbeats_keep_a_call(user: Caller, worker: ToolWorker, run: Run) -> None:
    """A call lasts longer than its lease as long as its worker is heard."""
    run_id = run("pay")
    call = worker.take(lease_seconds=6)
    for _ in range(4):
        assert {"cancelled": [], "lost": []} == worker.heartbeat(
            call, wait_seconds=2, lease_seconds=6
        )

    worker.complete(call, "paid")

    assert ("paid", False) == result(user, run_id)


def test_a_cancel_reaches_the_worker(user: Caller, worker: ToolWorker, run: Run) -> None:
    """A waiting heartbeat returns at once, and every other response names the call too."""
    run_id = run("pay")
    call = worker.take()
    news: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: news.append(worker.heartbeat(call, wait_seconds=7)))
    waiting.start()

    user.cancel(run_id)
    waiting.join(20)

    assert [{"cancelled": [call["call_id"]], "lost": []}] == news
    assert [call["call_id"]] == worker.poll(wait_seconds=0)["cancelled"]
    assert "cancelled" == user.ended(run_id)["status"]
    assert 200 == worker.fail(call, "stopped").status_code


def test_a_call_outlives_its_service_worker(
    user: Caller, system: System, worker: ToolWorker, run: Run
) -> None:
    """The next attempt waits for the call that the killed process has queued: the tool is called
    once, and its outcome is known.
    """
    run_id = run("pay")
    call = worker.take(lease_seconds=60)
    with system.without_worker():
        assert 200 == worker.complete(call, "paid").status_code

    assert ("paid", False) == result(user, run_id)
    assert [] == worker.poll(wait_seconds=0)["calls"]


def test_a_stopping_web_server_lets_its_polls_go(user: Caller, system: System, pool: str) -> None:
    """Polls of a server that is restarted respond at once, and are made again elsewhere."""
    with system.one_more_web_server() as server:
        worker = replace(ToolWorker.of(user, pool), url=server.url)
        polled: list[dict[str, Any]] = []
        poll = threading.Thread(target=lambda: polled.append(worker.poll(wait_seconds=30)))
        poll.start()
        eventually(lambda: user.get(f"/v1/tool-workers/{pool}/tools") != [])
    poll.join(25)

    assert [[]] == [one["calls"] for one in polled]
