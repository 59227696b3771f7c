"""The effect of one org's MCP servers on the calls of another."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from arkloop.shared.ids import new_id
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.server import Server
from arkloop.worker.mcp.sidecar import MAX_DATA_BYTES, MAX_SESSIONS
from tests import waiting
from tests.waiting import eventually
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.odd_server import Odd

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[3]
LOOPBACK = ["127.0.0.0/8"]


@contextmanager
def client_of(**limits: float) -> Iterator[McpClient]:
    client = McpClient(allowed_networks=LOOPBACK, **limits)  # type: ignore[arg-type]  # by their names
    try:
        yield client
    finally:
        client.close()


def server_at(url: str, org_id: UUID | None = None) -> Server:
    return Server(org_id=org_id or new_id(), config_id=new_id(), name="http", url=url)


@contextmanager
def answering(
    wait_for: threading.Event | None = None, begun: threading.Semaphore | None = None
) -> Iterator[str]:
    """Run a server whose tool answers as soon as the event is set; `begun` counts the calls."""

    def answer(handler: Lying) -> None:
        if begun is not None:
            begun.release()
        if wait_for is not None:
            wait_for.wait(60)
        handler.result(handler.message, {"content": [{"type": "text", "text": "done"}]})

    let_go = threading.Event()
    let_go.set()
    with lying(answer, let_go=let_go) as (url, _):
        yield url


def call(client: McpClient, server: Server) -> str:
    [tool] = client.tools(server)
    return client.call(server, "lie", {}, pinned=tool.hash)


def sidecar_of(client: McpClient, server: Server) -> psutil.Process:
    pid = client.sidecar_pid(server.org_id)
    assert pid is not None
    return psutil.Process(pid)


def test_silent_servers_of_an_org_take_no_sessions_of_others() -> None:
    """One session above the org's limit is refused, and other orgs are not affected."""
    noisy, refused = new_id(), []
    with ExitStack() as stack:
        client = stack.enter_context(client_of())
        url = stack.enter_context(answering())
        pool = stack.enter_context(ThreadPoolExecutor(MAX_SESSIONS + 1))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))

        def ask(number: int) -> None:
            place = f"http://127.0.0.1:{silent.getsockname()[1]}/{number}"
            try:
                client.tools(server_at(place, noisy), seconds=30)
            except McpFailed as failed:
                refused.append(str(failed))

        asking = [pool.submit(ask, number) for number in range(MAX_SESSIONS + 1)]
        eventually(lambda: bool(refused))

        assert "done" == call(client, server_at(url))

        assert 1 == len(refused)
        assert f"connected to {MAX_SESSIONS} MCP servers" in refused[0]
        silent.close()  # which resets the connections that wait there
        for asked in asking:
            asked.result()


def test_a_sidecar_that_dies_fails_the_calls_of_its_org_alone() -> None:
    """The call of another org, which is under way, succeeds in the same process."""
    released = threading.Event()
    with client_of() as client, answering(released) as url, ThreadPoolExecutor(2) as pool:
        quiet, noisy = server_at(url), server_at(url)
        quietly, noisily = (pool.submit(call, client, server) for server in (quiet, noisy))
        eventually(lambda: all(client.sidecar_pid(one.org_id) for one in (quiet, noisy)))
        process = sidecar_of(client, quiet)

        sidecar_of(client, noisy).kill()

        with pytest.raises(McpFailed, match="crashed"):
            noisily.result(60)
        assert not quietly.done()
        released.set()
        assert "done" == quietly.result(60)
        assert process == sidecar_of(client, quiet)


def test_sidecars_outlive_the_process_that_forked_them() -> None:
    """Its death loses no call, and the next org's sidecar is forked by another one."""
    with client_of() as client, answering() as url:
        early, late = server_at(url), server_at(url)
        assert "done" == call(client, early)
        process = sidecar_of(client, early)
        forker = process.parent()
        assert forker is not None
        forker.kill()
        eventually(lambda: not waiting.is_alive(forker))

        assert "done" == call(client, early)
        assert "done" == call(client, late)

        assert process == sidecar_of(client, early)
        assert forker != sidecar_of(client, late).parent()
    eventually(lambda: not waiting.is_alive(process))


def test_a_sidecar_that_nobody_uses_is_ended() -> None:
    """The next call starts another one, without a pause."""
    released, begun = threading.Event(), threading.Semaphore(0)
    with (
        client_of(idle_seconds=0.3) as client,
        answering(released, begun) as url,
        ThreadPoolExecutor(1) as pool,
    ):
        server = server_at(url)
        called = pool.submit(call, client, server)
        assert begun.acquire(timeout=60)
        process = sidecar_of(client, server)  # while it is used: it may end at once afterwards
        released.set()
        assert "done" == called.result(60)

        eventually(lambda: not waiting.is_alive(process))

        assert "done" == call(client, server)


def test_the_org_that_has_used_its_sidecar_least_recently_makes_room() -> None:
    """A sidecar with a call under way stays: if all have one, the newcomer is refused with the
    reason.
    """
    released, begun = threading.Event(), threading.Semaphore(0)
    with ExitStack() as stack:
        client = stack.enter_context(client_of(max_orgs=2))
        quick = stack.enter_context(answering())
        slow = stack.enter_context(answering(released, begun))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        stack.callback(released.set)
        first, second, third = server_at(quick), server_at(slow), server_at(quick)
        assert "done" == call(client, first)
        waiting_call = pool.submit(call, client, second)
        assert begun.acquire(timeout=60)
        process = sidecar_of(client, first)

        assert "done" == call(client, third)

        eventually(lambda: not waiting.is_alive(process))
        another = pool.submit(call, client, server_at(slow, third.org_id))
        assert begun.acquire(timeout=60)  # else the other call could take its room
        with pytest.raises(McpFailed, match="2 organizations are using MCP servers"):
            call(client, first)
        released.set()
        assert ["done", "done"] == [waiting_call.result(60), another.result(60)]


def test_the_memory_of_a_sidecar_is_limited_and_that_of_its_programs_is_not(
    tmp_path: Path,
) -> None:
    """A program's needs are limited by the operator who allows programs."""
    client = McpClient(stdio=True)
    try:
        odd = Odd(client, tmp_path)
        own = psutil.Process().rlimit(psutil.RLIMIT_DATA)
        assert (MAX_DATA_BYTES, own[1]) == odd.sidecar.rlimit(psutil.RLIMIT_DATA)
        assert own == psutil.Process(odd.pids[0]).rlimit(psutil.RLIMIT_DATA)
    finally:
        client.close()


_HANGING = """
import asyncio, re
from arkloop.worker.mcp import sidecar

async def main():
    watching = asyncio.create_task(sidecar._watch())
    await asyncio.sleep(1.5 * sidecar.HANG_SECONDS)
    print("alive", flush=True)
    re.match("(a+)+$", 60 * "a" + "b")  # takes years, and does not release the GIL

sidecar.HANG_SECONDS = 4
asyncio.run(main())
"""


def test_an_event_loop_that_hangs_is_ended() -> None:
    """A hanging event loop ends the process, also within C code; a running one does not."""
    ended = subprocess.run(
        [sys.executable, "-c", _HANGING],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert (1, "alive\n") == (ended.returncode, ended.stdout)
    assert "Timeout" in ended.stderr
