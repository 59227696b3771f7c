"""Workers of customers whose org is suspended, and resumed later."""

import secrets
import shutil
import signal
import time
from pathlib import Path

import pytest

from arkloop.shared.accounts import suspensions
from tests.caller import Caller, script
from tests.cli.command import Arkloop
from tests.system import System
from tests.waiting import eventually

pytestmark = pytest.mark.processes

MODULE = Path(__file__).with_name("quick_polls.py")


@pytest.mark.parametrize("kind", ["tools", "agents"])
def test_a_worker_goes_on_after_its_org_is_resumed(
    system: System, user: Caller, arkloop: Arkloop, tmp_path: Path, kind: str
) -> None:
    """It polls rarely meanwhile, and logs the suspension once."""
    shutil.copy(MODULE, tmp_path)
    name = f"own-{secrets.token_hex(4)}"
    persona, command = {
        "tools": ({"tool_workers": [name]}, ("tools", "serve", "quick_polls", "--pool", name)),
        "agents": ({"agent": name}, ("agents", "serve", "quick_polls:agent", "--agent", name)),
    }[kind]
    user.made("/v1/personas", {"key": name, **persona})
    _, key = user.api_key(scopes=[f"{kind}.work"])
    with system.connections.transaction() as tx:
        suspensions.suspend(tx, user.org_id, "Unpaid bills")
    with arkloop.with_(ARKLOOP_API_KEY=key).started(*command) as worker:
        assert worker.stderr is not None
        log = worker.stderr.readline() + worker.stderr.readline()
        assert b"polling continues once the organization is resumed" in log
        time.sleep(0.5)  # for some more polls
        assert None is worker.poll()

        with system.connections.transaction() as tx:
            suspensions.resume(tx, user.org_id)
        eventually(lambda: user.http.get("/v1/me").status_code == 200)
        if kind == "tools":
            eventually(lambda: user.get(f"/v1/tool-workers/{name}/tools") != [])
        steps = script({"tool": "greet", "args": {}}, {"say": "ok"})
        run_id = user.start(user.thread(steps), persona_id=name)
        assert "completed" == user.ended(run_id)["status"]
        worker.send_signal(signal.SIGTERM)
        lines = worker.communicate(timeout=60)[1].splitlines()
        # For a moment another web process may still refuse, so that both lines come again.
        assert all(b"polling continues" in line for line in lines), lines
        assert b"the organization has been resumed" in lines[-1]
