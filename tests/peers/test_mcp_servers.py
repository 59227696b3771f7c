"""Our MCP client against `server-everything`, the reference server, over both transports."""

import base64
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from arkloop.shared.ids import new_id
from arkloop.worker.contract.input_requests import InputRequired, Replies
from arkloop.worker.contract.messages import ToolSpec
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.server import Server
from arkloop.worker.tools import Tool, ToolFailed
from tests.peers.conftest import installed
from tests.waiting import eventually

pytestmark = pytest.mark.peers

#: Of the server over HTTP.
PORT = 3001
PAGE, ACCEPT = "https://example.com/login", {"action": "accept"}
ROOT = Path(__file__).parents[2]


def server_of(**how: Any) -> Server:
    return Server(org_id=new_id(), config_id=new_id(), name="everything", **how)


class Everything:
    """A session with the server."""

    def __init__(self, client: McpClient, server: Server) -> None:
        self.client = client
        self.server = server
        self.tools = {tool.name: tool for tool in client.tools(server)}

    def call(self, tool: str, stop: StopSignal | None = None, **arguments: Any) -> Any:
        return self.client.call(
            self.server,
            tool,
            arguments,
            pinned=self.tools[tool].hash,
            context=stop or StopSignal(),
        )

    def asked(self, tool: str, reply: dict[str, Any], **arguments: Any) -> list[str]:
        """Call a tool, and reply whenever it asks; returns what it asks for, and its result."""
        told: list[str] = []
        replies: Replies | None = None
        how: dict[str, Any] = {"pinned": self.tools[tool].hash, "run_id": str(new_id())}
        while True:
            try:
                call = partial(self.client.call, self.server, tool, arguments, **how)
                return [*told, str(call(replies=replies))]
            except InputRequired as required:
                [asked] = required.asked
                told.append(f"{asked['kind']}: {asked['prompt']}")
                replies = Replies({asked["key"]: reply}, required.state, required.held)

    def cancelled(self) -> float:
        """Return how many seconds a long call continues after its run was stopped."""
        stop = StopSignal()
        raised: list[BaseException] = []

        def ask() -> None:
            try:
                self.call("trigger-long-running-operation", stop, duration=30, steps=60)
            except BaseException as error:
                raised.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        threading.Event().wait(3)  # it tells nobody that it has begun
        began = time.monotonic()
        stop.set(CancelRequested())
        asking.join(40)
        assert [CancelRequested] == [type(error) for error in raised]
        return time.monotonic() - began


def talk(everything: Everything) -> dict[str, Any]:
    """Have the same conversation over either transport."""
    return {
        "echo": everything.call("echo", message="Grüße 🌍"),
        "sum": everything.call("get-sum", a=40, b=2),
        "image": astuple(everything.call("get-tiny-image")),
        "structured": everything.call("get-structured-content", location="Chicago"),
        "links": everything.call("get-resource-links", count=2),
        "form": everything.asked(
            "trigger-elicitation-request", {"action": "accept", "content": {"name": "Zoë"}}
        ),
        "page": everything.asked("trigger-url-elicitation", ACCEPT, url=PAGE),
        "page before": everything.asked(
            "trigger-url-elicitation", ACCEPT, url=PAGE, elicitationId="7", errorPath=True
        ),
        "cancelled after": everything.cancelled(),
        "afterwards": everything.call("echo", message="still here"),
    }


def check(told: dict[str, Any]) -> None:
    """Check what `talk` has returned."""
    assert "Echo: Grüße 🌍" == told["echo"]
    assert "The sum of 40 and 2 is 42." == told["sum"]
    text, [image] = told["image"]
    assert "[image 1]" in text
    assert base64.b64decode(image).startswith(b"\x89PNG")
    assert "temperature" in told["structured"]
    assert 2 == told["links"].count("[resource omitted: ")
    form, filled_in = told["form"]
    assert "form: Please provide inputs for the following fields:" == form
    assert "Zoë" in filled_in
    page, visited = told["page"]
    assert page.startswith("authorization: ")
    assert "User completed the URL elicitation flow" in visited
    # First it fails for want of a visit, then it asks during the call.
    before, during, visited = told["page before"]
    assert [True, True] == [page.startswith("authorization: ") for page in (before, during)]
    assert "User completed the URL elicitation flow" in visited
    assert told["cancelled after"] < 20
    assert "Echo: still here" == told["afterwards"]


@pytest.fixture(scope="module")
def everything() -> Iterator[Everything]:
    client = McpClient(stdio=True)
    command = (str(installed("mcp-server-everything")), "stdio")
    yield Everything(client, server_of(command=command))
    client.close()


def test_everything_over_stdio(everything: Everything) -> None:
    """Text, notes for the rest, and a call that is cancelled."""
    check(talk(everything))


def test_its_schemas_are_usable(everything: Everything) -> None:
    """Wrong arguments never reach it; no tool of it has a problem, except one for tasks alone."""
    problems = {name: tool.problem for name, tool in everything.tools.items() if tool.problem}
    assert {"simulate-research-query": "It requires tasks, which are not supported."} == problems
    described = everything.tools["get-sum"]
    spec = ToolSpec(described.name, described.description, described.parameters)
    tool = Tool(spec=spec, function=lambda *_: "", idempotent=False)

    tool.check({"a": 1, "b": 2.5})
    with pytest.raises(ToolFailed, match="b"):
        tool.check({"a": 1, "b": "two"})


def test_a_server_that_is_killed_in_a_call(everything: Everything) -> None:
    """The call fails at once, and the next one has a new server."""
    failed: list[str] = []

    def ask() -> None:
        try:
            everything.call("trigger-long-running-operation", duration=30, steps=3)
        except McpFailed as error:
            failed.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    threading.Event().wait(3)
    sidecar = psutil.Process(everything.client.sidecar_pid(everything.server.org_id))
    [server] = sidecar.children()

    server.kill()

    asking.join(30)
    assert ["The server process exited. The call may have taken effect."] == failed
    eventually(lambda: "Echo: again" == everything.call("echo", message="again"))


def test_everything_over_http() -> None:
    """The same conversation works over the protocol's other transport."""
    check(_over_http("talk"))


def test_a_server_that_is_restarted_over_http() -> None:
    """After `kill -9` during a call, between calls and before a discovery the next call succeeds;
    the call that was cut off is reported as failed, and not made again.
    """
    told = _over_http("restart")

    assert "Echo: between calls" == told["between calls"]
    lost = "The connection to the server was lost. The call may have taken effect."
    assert lost == told["cut off"]
    assert "Echo: during a call" == told["during a call"]
    assert "Connecting to the server failed." == told["gone"]
    assert "Echo: before a discovery" == told["before a discovery"]


def _over_http(scene: str) -> dict[str, Any]:
    """Play a scene with the server over HTTP, and return what it reports.

    The server listens on all addresses: so it gets a network of its own, and the client with it.
    """
    program = installed("mcp-server-everything")
    alone = ["unshare", "-rn"]
    if shutil.which("ip") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this machine allows no network namespaces")
    module = f"{sys.executable} -m tests.peers.test_mcp_servers"
    script = f"ip link set lo up && exec {module} {program} {scene}"

    told = subprocess.run(
        [*alone, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert 0 == told.returncode, told.stderr
    reported: dict[str, Any] = json.loads(told.stdout)
    return reported


class HttpServer:
    """The server at its port, which can be killed and started again."""

    def __init__(self, program: str) -> None:
        self._command = [program, "streamableHttp"]
        self.start()

    def start(self) -> None:
        silent = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdout=silent, stderr=silent)
        eventually(self._is_open)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def _is_open(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", PORT)) == 0


def _failure(ask: Callable[[], object]) -> str:
    with pytest.raises(McpFailed) as failed:
        ask()
    return str(failed.value)


def restart(everything: Everything, process: HttpServer) -> dict[str, str]:
    """Restart the server at three moments, and call it after each."""
    told = {}
    assert "Echo: before" == everything.call("echo", message="before")
    process.restart()
    told["between calls"] = everything.call("echo", message="between calls")

    long = partial(everything.call, "trigger-long-running-operation", duration=30, steps=30)
    asking = threading.Thread(target=lambda: told.update({"cut off": _failure(long)}))
    asking.start()
    threading.Event().wait(3)  # it tells nobody that it has begun
    process.restart()
    asking.join(30)
    told["during a call"] = everything.call("echo", message="during a call")

    process.kill()
    told["gone"] = _failure(lambda: everything.client.tools(everything.server))
    process.start()
    everything.tools = {t.name: t for t in everything.client.tools(everything.server)}
    told["before a discovery"] = everything.call("echo", message="before a discovery")
    return told


def _play(program: str, scene: str) -> None:
    """Start the server in the network namespace, and print what it reported."""
    process, client = HttpServer(program), McpClient(allowed_networks=["127.0.0.0/8"])
    try:
        everything = Everything(client, server_of(url=f"http://127.0.0.1:{PORT}/mcp"))
        told = talk(everything) if scene == "talk" else restart(everything, process)
        print(json.dumps(told))
    finally:
        client.close()
        process.kill()


if __name__ == "__main__":
    _play(*sys.argv[1:])
