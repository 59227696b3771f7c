"""A tool worker in a network that has no route in or out, and what passes its one way out."""

import base64
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.caller import Caller, script
from tests.system import System
from tests.waiting import eventually
from tests.walled_off import Recorder

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
UNSHARE = shutil.which("unshare") or "unshare"
IN_NETWORK_OF_ITS_OWN = (UNSHARE, "--net", "--map-root-user")

TOOLS = '''
import hashlib
import os
import socket
from pathlib import Path

from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool


@tool(idempotent=True)
def balance(context: ToolContext, customer: str) -> str:
    """Return the balance of a customer."""
    # As a driver proves that it knows the password of the customer's database.
    proof = hashlib.sha256((os.environ["CRM_PASSWORD"] + customer).encode()).hexdigest()
    interfaces = [name for _, name in socket.if_nameindex()]
    listening = Path("/proc/net/tcp").read_text().count(" 0A ")
    return f"{proof}, interfaces {interfaces}, {listening} listener"
'''


def _is_allowed() -> bool:
    done = subprocess.run([*IN_NETWORK_OF_ITS_OWN, "true"], capture_output=True, check=False)
    return done.returncode == 0


def test_a_worker_without_inbound_routes_keeps_its_credentials(
    system: System, user: Caller, tmp_path: Path
) -> None:
    """It executes calls over outbound HTTP alone, and none of that contains its credentials.

    Its network has the loopback interface and one listener, the way out itself.
    """
    if not shutil.which("unshare") or not _is_allowed():
        pytest.skip("networks of one's own need the right to make namespaces")
    (tmp_path / "crm.py").write_text(TOOLS)
    pool, password = f"crm-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
    user.made("/v1/personas", {"key": pool, "tool_workers": [pool]})
    key = user.api_key(scopes=["tools.work"])[1]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    way_out = tmp_path / "out"
    recorder = Recorder(way_out, int(user.url.rpartition(":")[2]))
    worker = subprocess.Popen(
        [
            *IN_NETWORK_OF_ITS_OWN,
            *(sys.executable, "-m", "tests.walled_off", str(way_out), str(port)),
            *(str(Path(sys.executable).with_name("arkloop")), "tools", "serve"),
            *(str(tmp_path / "crm.py"), "--pool", pool),
        ],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "ARKLOOP_URL": f"http://127.0.0.1:{port}",
            "ARKLOOP_API_KEY": key,
            "CRM_PASSWORD": password,
        },
        stderr=subprocess.PIPE,
    )
    try:
        eventually(lambda: user.get(f"/v1/tool-workers/{pool}/tools") != [])
        thread_id = user.thread(
            script({"tool": "balance", "args": {"customer": "zoe"}}, {"say": "ok"})
        )
        run_id = user.start(thread_id, persona_id=pool)
        assert "completed" == user.ended(run_id)["status"]
    finally:
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=60)
        recorder.close()

    (result,) = [e["data"] for e in user.events(run_id) if e["type"] == "tool.result"]
    proof = hashlib.sha256(f"{password}zoe".encode()).hexdigest()
    assert f"{proof}, interfaces ['lo'], 1 listener" == result["output"]
    captured = bytes(recorder.captured)
    assert f"POST /v1/tool-workers/{pool}:complete".encode() in captured
    assert proof.encode() in captured
    for form in (password, base64.b64encode(password.encode()).decode(), password.encode().hex()):
        assert form.encode() not in captured + log
