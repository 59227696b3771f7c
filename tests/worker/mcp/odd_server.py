"""A server of odd tools, as the tests of the client start it."""

import json
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

from arkloop.shared.ids import new_id
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.server import Server
from tests import waiting

ODD = Path(__file__).with_name("odd_mcp_server.py")
#: Of the servers whose tests have no other org in them.
ORG = new_id()


class Odd:
    """A server of the test's own, and the client that asks it."""

    def __init__(self, client: McpClient, folder: Path, org_id: UUID = ORG) -> None:
        self.client = client
        self.folder = folder
        command = (sys.executable, "-I", "-S", str(ODD), str(folder))
        self.server = Server(org_id=org_id, config_id=new_id(), name="odd", command=command)
        self.hashes = {tool.name: tool.hash for tool in client.tools(self.server)}

    def call(self, tool: str, **kwargs: Any) -> str:
        arguments = kwargs.pop("arguments", {})
        kwargs.setdefault("pinned", self.hashes.get(tool, "0" * 64))
        return self.client.call(self.server, tool, arguments, **kwargs)

    def says(self, *tools: dict[str, Any]) -> None:
        """Set tools that it has from now on, in addition."""
        (self.folder / "descriptions.json").write_text(json.dumps(tools))

    @property
    def sidecar(self) -> psutil.Process:
        """The process that speaks to it for its org."""
        pid = self.client.sidecar_pid(self.server.org_id)
        assert pid is not None
        return psutil.Process(pid)

    @property
    def log(self) -> list[dict[str, Any]]:
        whole, _, _ = (self.folder / "log").read_text().rpartition("\n")  # the last may be half
        return [json.loads(line) for line in whole.splitlines()]

    @property
    def pids(self) -> list[int]:
        """The ids of every process that it has been, in order."""
        return [entry["pid"] for entry in self.log if "pid" in entry]

    def asked(self, tool: str) -> bool:
        return any(entry.get("params", {}).get("name") == tool for entry in self.log)


def is_alive(pid: int) -> bool:
    try:
        return waiting.is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False
