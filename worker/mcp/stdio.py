"""Servers that are programs on this machine: MCP over their standard input and output.

The SDK has this too, but keeps whatever a program writes until a line ends.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
from mcp.shared.message import SessionMessage

from arkloop.shared.security.program_user import ProgramUser
from arkloop.worker.mcp import launcher
from arkloop.worker.mcp.bounded_messages import MAX_BYTES, TooLarge, parse, refusal_of

#: Seconds that a program has to exit after the end of its input, and again after SIGTERM.
GRACE_SECONDS = 1.0
EXITED = "The server process exited."


@contextlib.asynccontextmanager
async def program(
    command: Sequence[str], ended: Callable[[str], None], run_as: ProgramUser | None = None
) -> AsyncIterator[tuple[Any, Any]]:
    """Start it without a shell, in a process group of its own, which ends with the block.

    It runs as `run_as`, else as the user of this process. Of the environment it gets PATH and HOME;
    what it writes to its standard error is lost. `ended` is called when it says no more, with the
    reason.

    Raises:
        OSError: it cannot be started.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(command[0])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", launcher.__file__, str(os.getpid())),
        *(("", "", "") if run_as is None else (run_as.name, str(run_as.uid), str(run_as.gid))),
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=launcher.environment() | ({} if run_as is None else {"HOME": run_as.home}),
        cwd="/",
        start_new_session=True,
        limit=MAX_BYTES,
    )
    to_session, from_program = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_program, from_session = anyio.create_memory_object_stream[SessionMessage](0)

    async def read() -> None:
        assert process.stdout is not None
        async with to_session:
            try:
                # What a program prints without a line's end at its end is no message.
                while (line := await process.stdout.readline()).endswith(b"\n"):
                    message = _parsed(line)
                    if message is not None:
                        await to_session.send(message)
            except ValueError:  # StreamReader's word for a line that is too long
                ended(f"The server wrote a line of more than {MAX_BYTES} bytes.")
            except TooLarge as error:
                ended(f"The server wrote a message of {error}.")
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the session is gone
            else:
                ended(await _how_it_ended(process, run_as))

    async def write() -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            async with from_session:
                async for message in from_session:
                    text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                    process.stdin.write(text.encode() + b"\n")
                    await process.stdin.drain()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(write)
        try:
            yield from_program, to_program
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await _end(process)
                for stream in (to_session, from_program, to_program, from_session):
                    await stream.aclose()


def _parsed(line: bytes) -> SessionMessage | None:
    try:
        return SessionMessage(parse(line))
    except ValueError:
        error = refusal_of(line)
        return None if error is None else SessionMessage(error)  # programs print other things too


async def _how_it_ended(process: asyncio.subprocess.Process, run_as: ProgramUser | None) -> str:
    await _has_gone(process)
    if process.returncode != launcher.CANNOT_START:
        return EXITED
    user = f" as the user {run_as.name}" if run_as else ""
    return f"The program cannot be started{user}, or it exited with the status 127."


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    if not await _has_gone(process):
        _signal_group(process.pid, signal.SIGTERM)
        await _has_gone(process)
    # The rest of its group too: what it started may have outlived it.
    _signal_group(process.pid, signal.SIGKILL)
    await _has_gone(process)


async def _has_gone(process: asyncio.subprocess.Process) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            # Not wait(): that also waits until nobody holds the pipes any more.
            while process.returncode is None:
                await asyncio.sleep(0.01)
    return process.returncode is not None


def _signal_group(group: int, sent: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, sent)
