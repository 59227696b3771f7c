"""`arkloop tools serve` in processes of its own, and what becomes of calls when they are lost."""

import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.caller import Caller, script
from tests.cli.command import Arkloop
from tests.waiting import eventually

pytestmark = pytest.mark.processes

TOOLS = Path(__file__).with_name("shop_tools.py")


@dataclass(frozen=True)
class Shop:
    """A pool of workers, and the persona that has its tools."""

    user: Caller
    arkloop: Arkloop
    pool: str
    steps: Path
    stack: ExitStack

    def worker(self, *options: str) -> subprocess.Popen[bytes]:
        """Start a worker; returns when it has registered its tools."""
        command = ("tools", "serve", "shop_tools", "--pool", self.pool, *options)
        started = self.stack.enter_context(self.arkloop.started(*command))
        eventually(lambda: self.user.get(f"/v1/tool-workers/{self.pool}/tools") != [])
        return started

    def run(self, *calls: dict[str, Any]) -> str:
        """Start a run whose model makes these calls side by side."""
        thread_id = self.user.thread(script({"tools": list(calls)}, {"say": "ok"}))
        return self.user.start(thread_id, persona_id=self.pool, end_user_id="zoe")

    def results(self, run_id: str) -> list[tuple[str, bool]]:
        events = self.user.events(run_id)
        found = [event["data"] for event in events if event["type"] == "tool.result"]
        return [(data["output"], data["is_error"]) for data in found]

    def until(self, step: str) -> None:
        eventually(lambda: self.steps.exists() and step in self.steps.read_text())


@pytest.fixture
def shop(user: Caller, arkloop: Arkloop, tmp_path: Path) -> Iterator[Shop]:
    shutil.copy(TOOLS, tmp_path)
    pool = f"shop-{secrets.token_hex(4)}"
    user.made("/v1/personas", {"key": pool, "tool_workers": [pool]})
    key = user.api_key(scopes=["tools.work"])[1]
    steps = tmp_path / "steps"
    with ExitStack() as stack:
        yield Shop(user, arkloop.with_(ARKLOOP_API_KEY=key, STEPS=str(steps)), pool, steps, stack)


def call(tool: str, **args: Any) -> dict[str, Any]:
    return {"tool": tool, "args": args}


def test_a_worker_executes_functions_and_coroutines(shop: Shop) -> None:
    """The model reads what they return; of an exception it reads the class name alone."""
    worker = shop.worker()

    run_id = shop.run(
        call("find_order", number="4711"),
        call("count_stock", item="lamps"),
        call("find_order", number="0"),
        call("find_order", number="secret"),
    )

    expected = [
        ("4711 of zoe is on its way", False),
        ("7 lamps", False),
        ("There is no order 0.", True),
        ("The tool failed: ValueError.", True),
    ]
    assert expected == shop.results(run_id)
    worker.send_signal(signal.SIGTERM)
    _, log = worker.communicate(timeout=60)
    assert (0, True) == (worker.returncode, b"postgres://user:password@db" in log)


def test_a_result_beyond_what_the_service_accepts_is_cut(shop: Shop) -> None:
    """A long error and too many images arrive, shortened, and the text says so."""
    shop.worker()

    run_id = shop.run(call("explain", number="7"), call("draw", count=9))
    results = [e["data"] for e in shop.user.events(run_id) if e["type"] == "tool.result"]

    cut = "\n[cut: the output was too long for one response]"
    expected = [("7" * (65_536 - len(cut)) + cut, True), ("images" + cut, False)]
    assert expected == [(data["output"], data["is_error"]) for data in results]
    assert 8 == len(results[1]["files"])


def test_a_tool_that_exits_has_failed(shop: Shop) -> None:
    """The call has a result, its place is free again, and coroutines go on."""
    shop.worker("--concurrency", "1")

    exits = (call("parse"), call("parse_later"), call("parse_many"))
    run_id = shop.run(*exits, call("count_stock", item="lamps"))

    failed = ("The tool failed: SystemExit.", True)
    assert [failed, failed, failed, ("7 lamps", False)] == shop.results(run_id)


def test_a_reader_of_the_log_that_stands_still_stops_no_call(shop: Shop) -> None:
    """A call that logs more than a pipe takes ends, and so does the worker."""
    worker = shop.worker()

    assert [("talked", False)] == shop.results(shop.run(call("talk", lines=3_000)))

    worker.send_signal(signal.SIGTERM)
    assert 0 == worker.wait(60)


def test_a_stopping_worker_ends_its_calls(shop: Shop) -> None:
    """After SIGTERM it fetches no more calls, and reports those in progress."""
    worker = shop.worker()
    run_id = shop.run(call("ship", seconds=0.5))
    shop.until("ship")

    worker.send_signal(signal.SIGTERM)

    assert 0 == worker.wait(60)
    assert [("shipped", False)] == shop.results(run_id)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_lost_worker_is_replaced(shop: Shop, how: signal.Signals) -> None:
    """A call that may be repeated goes to another worker; the result of a frozen one is refused,
    and one that cannot end within its grace leaves its calls to others.
    """
    lost = shop.worker("--lease", "3", "--grace", "0")
    run_id = shop.run(call("pack", seconds=5))
    shop.until(f"pack {lost.pid}")
    lost.send_signal(how)

    other = shop.worker("--lease", "3")

    assert [(f"packed by {other.pid}", False)] == shop.results(run_id)
    if how == signal.SIGSTOP:
        lost.send_signal(signal.SIGCONT)
        lost.send_signal(signal.SIGTERM)
        lost.wait(60)


def test_what_a_lost_worker_did_once_is_not_done_again(shop: Shop) -> None:
    """A call that must not be repeated has an unknown outcome after kill -9."""
    lost = shop.worker()
    run_id = shop.run(call("ship", seconds=60))
    shop.until("ship")
    lost.kill()
    shop.worker()

    ((output, is_error),) = shop.results(run_id)

    assert is_error and "may or may not have taken effect" in output
    assert "ship\n" == shop.steps.read_text()


@pytest.mark.parametrize(
    ("tool", "reason"), [("ship", "CancelRequested"), ("restock", "CancelledError")]
)
def test_a_cancel_reaches_the_function(shop: Shop, tool: str, reason: str) -> None:
    """A function notices in its context, a coroutine is cancelled; the worker takes other calls."""
    shop.worker("--concurrency", "1")
    run_id = shop.run(call(tool, seconds=60))
    shop.until(tool)

    shop.user.cancel(run_id)

    shop.until(reason)
    assert [("7 lamps", False)] == shop.results(shop.run(call("count_stock", item="lamps")))


def test_a_worker_with_a_wrong_key_says_so(shop: Shop) -> None:
    """A key that may not do this ends the worker with the service's reason. The line before it says
    what the worker tries, not that it has begun.
    """
    key = shop.user.api_key(scopes=["data.runs.read"])[1]
    done = shop.arkloop.with_(ARKLOOP_API_KEY=key)(
        "tools", "serve", "shop_tools.py", "--pool", shop.pool
    )

    lines = done.stderr.decode().splitlines()
    assert f" polls pool {shop.pool} for calls of count_stock, draw, " in lines[0]
    assert (1, "lacks the scope `tools.work`" in lines[-1]) == (done.returncode, True)


def test_a_module_without_tools_is_refused(arkloop: Arkloop, tmp_path: Path) -> None:
    """The message names the module and what is missing."""
    (tmp_path / "empty.py").write_text("")

    for module, reason in (("empty", b"has no tools"), ("nowhere", b"ModuleNotFoundError")):
        done = arkloop("tools", "serve", module, "--pool", "shop")
        assert (1, True) == (done.returncode, reason in done.stderr)
