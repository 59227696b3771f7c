"""`HttpAgent` of `@ag-ui/client` in a Node.js process, steered from tests."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.ai_sdk_pages import MODULES, NODE, ROOT
from tests.caller import Caller

PROGRAM = ROOT / "tests" / "front_ends" / "agui.mjs"
#: Packages of clients: the newest, and the last one of 0.0.x.
NEWEST = "@ag-ui/client"
LAST_0_0 = "ag-ui-client-0"


@dataclass(frozen=True)
class AguiProcess:
    """A process with any number of agents."""

    process: subprocess.Popen[str]

    def perform(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(command)}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the client has ended"
        return dict(json.loads(line))

    def agent(
        self,
        user: Caller,
        thread_id: str,
        url: str = "",
        query: str = "",
        client: str = NEWEST,
        **setup: Any,
    ) -> "Agent":
        """Make an agent of a client for a thread, at this address of the service."""
        agent = Agent(self, f"{thread_id} {url} {query}")
        base = f"{url or user.url}/v1/agui"
        headers = {"Authorization": f"Bearer {user.token}"}
        about = {"threadId": thread_id, "headers": headers, "url": base + query, "client": client}
        self.perform(op="new", agent=agent.name, **about, **setup)
        return agent


@dataclass(frozen=True)
class Agent:
    """An `HttpAgent`, which keeps the messages of its thread."""

    process: AguiProcess
    name: str

    def run(self, *said: str, **how: Any) -> dict[str, Any]:
        """Add messages of the user and run the agent; returns events, messages and interrupts."""
        messages = [{"id": f"m-{hash(text)}", "role": "user", "content": text} for text in said]
        messages += how.pop("messages", [])
        return self.process.perform(op="run", agent=self.name, messages=messages, **how)

    def send(self, text: str, **how: Any) -> dict[str, Any]:
        """Send a message of the user as the guide does."""
        message = {"id": f"m-{hash(text)}", "role": "user", "content": text}
        return self.process.perform(op="send", agent=self.name, messages=[message], **how)

    def connect(self) -> dict[str, Any]:
        return self.process.perform(op="connect", agent=self.name)


@contextmanager
def agui_process() -> Iterator[AguiProcess]:
    """Run the client for the length of the block."""
    command = [str(NODE), str(PROGRAM), str(MODULES)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield AguiProcess(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
