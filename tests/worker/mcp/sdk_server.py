"""The server of the MCP SDK, as tests start it."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.ids import new_id
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.server import Server
from tests.waiting import eventually

SDK = Path(__file__).with_name("sdk_mcp_server.py")
ORG = new_id()
META = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}


def server_at(url: str, **headers: str) -> Server:
    return Server(org_id=ORG, config_id=new_id(), name="http", url=url, headers=headers)


class Sdk:
    """It can be ended and started again, at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.start()

    def start(self, *description: str) -> None:
        command = [sys.executable, str(SDK), str(self.port), str(self.folder), *description]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            eventually(self._is_open)
        except BaseException:
            self.end()
            raise

    def _is_open(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def lie_of(client: McpClient, url: str, server: Server | None = None, **kwargs: Any) -> str:
    server = server or server_at(url)
    [tool] = client.tools(server)
    return client.call(server, "lie", {}, pinned=tool.hash, **kwargs)
