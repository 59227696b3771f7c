"""Workers that were frozen while the service gave them work."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from arkloop.cli.client.server_address import ServerAddress
from arkloop.shared import ids
from tests.cli.command import Arkloop
from tests.cli.serve.polled_runs import RUN
from tests.cli.serve.scripted_service import scripted_service
from tests.cli.serve.test_tool_worker import CALL
from tests.waiting import eventually

pytestmark = pytest.mark.processes

LEASE_SECONDS = 3
#: What becomes of the work while its worker is frozen.
LOST, CANCELLED, HELD = (str(ids.new_id()) for _ in range(3))
MODULE = """
from arkloop.agents import AgentRun
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import CallInfo, tool

@tool(idempotent=False)
def work(context: ToolContext, info: CallInfo) -> str:
    "Execute the call."
    return info.run_id

def agent(run: AgentRun) -> str:
    run.check()
    return run.run_id
"""


class Away:
    """A service whose second poll brings three pieces of work to a worker that is frozen."""

    def __init__(self) -> None:
        self.polled, self.frozen = threading.Event(), threading.Event()
        self.ended: list[tuple[str, str]] = []
        self._polls = 0

    def respond(self, verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match verb:
            case "poll":
                return 200, self._poll()
            case "heartbeat":
                return 200, self._beat(body)
        self.ended.append((verb, body.get("run_id") or body["call_id"]))
        written = {"status": "completed", "cancel_requested": False, "next_seq": 9}
        return 200, {"ok": True, "cancelled": [], **written}

    def _poll(self) -> dict[str, Any]:
        self._polls += 1
        found: tuple[str, ...] = ()
        if self._polls == 2:
            self.polled.set()
            self.frozen.wait(60)
            found = (LOST, CANCELLED, HELD)
        elif self._polls > 2:
            time.sleep(0.2)
        return {
            "tools_hash": "0" * 64,
            "cancelled": [],
            "calls": [{**CALL, "call_id": one, "run_id": one, "fence": 1} for one in found],
            "lease_seconds": LEASE_SECONDS,
            "runs": [{**RUN, "run_id": one, "fence": 1} for one in found],
        }

    def _beat(self, body: dict[str, Any]) -> dict[str, Any]:
        if "calls" in body:
            named = {call["call_id"] for call in body["calls"]}
            return {"cancelled": [*named & {CANCELLED}], "lost": [*named & {LOST}]}
        named = {run["run_id"] for run in body["runs"]}
        news = [
            {"run_id": one, "is_held": one != LOST, "cancel_requested": one == CANCELLED}
            for one in named
        ]
        return {"lease_seconds": LEASE_SECONDS, "runs": news}


def _ends(address: ServerAddress, away: Away, folder: Path, *command: str) -> list[tuple[str, str]]:
    """Freeze a worker while work is on its way to it; return how the work ended."""
    (folder / "frozen_work.py").write_text(MODULE)
    environ = {"ARKLOOP_URL": address.url, "ARKLOOP_API_KEY": address.key}
    with Arkloop(folder, environ).started(*command) as worker:
        assert away.polled.wait(60)
        worker.send_signal(signal.SIGSTOP)
        away.frozen.set()
        time.sleep(LEASE_SECONDS / 2)
        worker.send_signal(signal.SIGCONT)
        eventually(lambda: HELD in [id_ for _, id_ in away.ended])
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=60)
    return sorted(away.ended)


def test_a_frozen_tool_worker_begins_the_calls_that_it_has_still(tmp_path: Path) -> None:
    """Others were taken from it, or cancelled, and would take effect too late."""
    away = Away()
    with scripted_service(away.respond) as address:
        lease = ("--lease", str(LEASE_SECONDS))
        command = ("tools", "serve", "frozen_work", "--pool", "mine", *lease)
        ended = _ends(address, away, tmp_path, *command)

    assert [("complete", HELD)] == ended


def test_a_frozen_agent_worker_begins_the_runs_that_it_has_still(tmp_path: Path) -> None:
    """A run that another worker has is not begun again; a cancelled one is given back."""
    away = Away()
    with scripted_service(away.respond) as address:
        ended = _ends(address, away, tmp_path, "agents", "serve", "frozen_work:agent")

    assert [("complete", HELD), ("release", CANCELLED)] == ended
