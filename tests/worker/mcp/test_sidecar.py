"""The process that speaks MCP for one org: what it does to others that need the machine."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from arkloop.shared.ids import new_id
from arkloop.shared.security.egress import Policy
from arkloop.worker.mcp import McpFailed, sidecar
from arkloop.worker.mcp.server import Server
from arkloop.worker.mcp.sessions import Rules
from arkloop.worker.mcp.sidecar import BUSY_SECONDS, Sessions, _is_out_of_memory

pytestmark = pytest.mark.processes

_PROGRAM = """
import asyncio, os, sys, time
from arkloop.worker.mcp import sidecar

async def compute(part, seconds):
    watch = asyncio.create_task(sidecar._give_way())
    until = time.monotonic() + seconds
    while time.monotonic() < until and not watch.done():
        end = time.process_time() + sidecar.BUSY_SECONDS * part
        while time.process_time() < end:  # in one go, as long as that takes on a busy machine
            pass
        await asyncio.sleep(sidecar.BUSY_SECONDS * (1 - part))
    return os.nice(0)

print(os.nice(0), asyncio.run(compute(*map(float, sys.argv[1:]))))
"""


def test_a_busy_process_gives_way_to_others() -> None:
    """Its priority falls within seconds once its servers keep it busy."""
    before, after = map(int, _run(0.95, 200 * BUSY_SECONDS))
    assert min(before + 10, 19) == after


def test_a_process_that_computes_little_keeps_its_priority() -> None:
    """A call now and then is answered at once, also beside a busy process of another org."""
    before, after = map(int, _run(0.02, 3.5 * BUSY_SECONDS))
    assert before == after


def test_sessions_of_end_users_take_none_of_other_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An org with many end users at a time still reaches servers that have one session for all."""
    monkeypatch.setattr(sidecar, "MAX_SESSIONS", 1)
    monkeypatch.setattr(sidecar, "MAX_OWNED_SESSIONS", 2)

    async def use() -> None:
        sessions = Sessions(Rules(Policy(), stdio=False))
        shared = Server(org_id=new_id(), config_id=new_id(), name="v", url="https://127.0.0.1/")
        owned = [replace(shared, owner=f"end_user:{number}") for number in range(3)]
        for server in (shared, *owned[:2]):
            sessions._session(server).users += 1
        with pytest.raises(McpFailed, match="already connected to 2 MCP servers for end users"):
            sessions._session(owned[2])
        sessions._session(owned[0]).users = 0
        assert owned[2] == sessions._session(owned[2]).server
        await sessions.close()

    asyncio.run(use())


def test_a_call_waits_for_a_session_of_the_orgs(monkeypatch: pytest.MonkeyPatch) -> None:
    """While all are in use it waits, and fails when none has become idle for a while."""
    monkeypatch.setattr(sidecar, "MAX_SESSIONS", 1)
    monkeypatch.setattr(sidecar, "ROOM_SECONDS", 0.3)

    async def use() -> None:
        sessions = Sessions(Rules(Policy(), stdio=False))
        first = Server(org_id=new_id(), config_id=new_id(), name="v", url="https://127.0.0.1/")
        second = replace(first, config_id=new_id(), url="https://127.0.0.2/")
        async with sessions._use(first, asyncio.timeout(10)):
            began = time.monotonic()
            with pytest.raises(McpFailed, match="already connected to 1 MCP servers"):
                await sessions._wait_for_session(second, None)
            assert 0.3 <= time.monotonic() - began < 30
            now = asyncio.get_running_loop().time()
            with pytest.raises(McpFailed, match="already connected"):
                await sessions._wait_for_session(second, now)  # its own time is over
            monkeypatch.setattr(sidecar, "ROOM_SECONDS", 60.0)
            waiting = asyncio.create_task(sessions._wait_for_session(second, None))
            await asyncio.sleep(0.01)
            assert not waiting.done()
        assert second == (await waiting).server
        await sessions.close()

    asyncio.run(use())


_HANGS = """
import asyncio, time
from arkloop.worker.mcp import sidecar

async def main():
    watching = asyncio.create_task(sidecar._watch())
    await asyncio.sleep(0)
    time.sleep(600)

sidecar.HANG_SECONDS = 0.5
asyncio.run(main())
"""
_HAS_NO_MEMORY = """
from arkloop.worker.mcp import sidecar
sidecar._end()
"""


@pytest.mark.parametrize(
    ("program", "status"),
    [(_HANGS, -signal.SIGALRM), (_HAS_NO_MEMORY, 1)],
    ids=["hangs", "has_no_memory"],
)
def test_a_sidecar_ends_while_nobody_reads_its_words(
    program: str, status: int, full_pipe: int
) -> None:
    """A traceback or a message that cannot be written is left out."""
    with subprocess.Popen([sys.executable, "-c", program], stderr=full_pipe) as process:
        try:
            assert status == process.wait(60)
        finally:
            process.kill()


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The end of a pipe that is full and not read."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n")
    os.set_blocking(writer, True)
    yield writer
    os.close(writer)
    os.close(reader)


def test_what_sidecars_log_is_json() -> None:
    """A sidecar that fails has a line as those of the worker, whose standard error it shares."""
    rules = json.dumps({"allowed_networks": [], "stdio": False, "run_as": None, "core_dumps": True})
    ours, theirs = socket.socketpair()
    with subprocess.Popen(
        [sys.executable, "-m", "arkloop.worker.mcp.forker", rules],
        stdin=theirs.fileno(),
        stderr=subprocess.PIPE,
    ) as process:
        theirs.close()
        with ours, open(os.devnull, "rb") as file:  # which is no socket
            socket.send_fds(ours, [b"."], [file.fileno()])
        _, written = process.communicate(timeout=60)

    [line] = written.splitlines()
    assert "sidecar failed" == json.loads(line)["message"]


def _run(part: float, seconds: float) -> list[str]:
    command = [sys.executable, "-c", _PROGRAM, str(part), str(seconds)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("kind", [MemoryError, type("PanicException", (BaseException,), {})])
def test_a_process_without_memory_is_recognised(kind: type[BaseException]) -> None:
    """A group of errors that holds one is recognised, and a panic of the JSON parser."""
    assert _is_out_of_memory(kind())
    assert _is_out_of_memory(BaseExceptionGroup("several", [BaseExceptionGroup("", [kind()])]))
    assert not _is_out_of_memory(ValueError())
    assert not _is_out_of_memory(None)
