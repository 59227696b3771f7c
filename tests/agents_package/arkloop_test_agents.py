"""Custom agents of the tests, which a package with an entry point brings: they play scripts.

The first message of the thread is a JSON list of steps, each with one key. An agent starts at the
step that its checkpoint names.
"""

import asyncio
import errno
import functools
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from gevent import socket
from gevent.event import Event

from arkloop.agents import AgentRun

#: As of a client at module level, and what a process has in which threads are greenlets.
SHARED, _OTHER_END = socket.socketpair()
SHARED_EVENT = Event()

Play = Callable[..., Any]


def decorated(function: Play) -> Play:
    """Return the function behind an ordinary one, as most decorators do."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


def script(run: AgentRun) -> Any:
    """Play the script, and return what its `return` says."""
    for number, step in _steps(run):
        if "return" in step:
            return step["return"]
        if "return_no_json" in step:
            return {"set": {1}}
        if "checkpoint" in step:
            run.checkpoint(number + 1)
        elif "until" in step:
            while not os.path.exists(step["until"]):
                run.checkpoint(number)
                run.wait(0.05)
        elif "hang" in step:
            time.sleep(step["hang"])
        elif "meet" in step:
            _arrive(run, step["meet"])
            while not _are_there(step):
                time.sleep(0.02)
        else:
            _play(run, step)
    return None


@decorated
async def decorated_script(run: AgentRun) -> Any:
    """Play the script in an event loop; seen from outside this is no coroutine function."""
    return await async_script(run)


async def async_script(run: AgentRun) -> Any:
    """Play the script in an event loop."""
    for _, step in _steps(run):
        if "return" in step:
            return step["return"]
        if "hang" in step:
            await asyncio.sleep(step["hang"])
        elif "meet" in step:
            _arrive(run, step["meet"])
            while not _are_there(step):
                await asyncio.sleep(0.02)
        elif "program" in step:
            made = await asyncio.create_subprocess_exec("/bin/touch", step["program"])
            await made.wait()
        elif "await" in step:
            run.text(await _awaited_in_step(run, step))
        else:
            _play(run, step)
    return None


def _steps(run: AgentRun) -> list[tuple[int, dict[str, Any]]]:
    steps = json.loads(run.messages[0]["content"])
    return list(enumerate(steps))[run.checkpoint_data or 0 :]


def _play(run: AgentRun, step: dict[str, Any]) -> None:
    [(kind, value)] = list(step.items())[:1]
    match kind:
        case "text" | "thinking":
            getattr(run, kind)(value)
        case "say_identity":
            run.text(json.dumps([run.run_id, run.end_user_id, dict(run.metadata), run.attempt]))
        case "say_attempt":
            run.text(str(run.attempt))
        case "call":
            run.tool_call(value, step.get("arguments", {}), tool_call_id=step["id"])
        case "result":
            run.tool_result(step["id"], value, is_error=step.get("is_error", False))
        case "append":
            run.step(
                "append",
                {"line": value},
                lambda: _append(run, step, value),
                tool_call_id=step["id"],
                idempotent=step.get("idempotent", False),
            )
        case "program":
            made = ["/bin/sh", "-c", f"echo made >> {value}"]
            run.text(run.step("program", {}, lambda: subprocess.run(made), tool_call_id=step["id"]))
        case "system":
            command = f"echo made >> {value}"
            run.text(run.step("system", {}, lambda: os.system(command), tool_call_id=step["id"]))
        case "receive":
            run.step("receive", {}, lambda: SHARED.recv(1), tool_call_id=value)
            SHARED.recv(1)
        case "await_shared":
            SHARED_EVENT.wait()
        case "usd":
            tokens = step.get("input_tokens", 0)
            run.cost(value, model=step.get("model"), input_tokens=tokens)
        case "tokens":
            run.cost(input_tokens=value, model=step.get("model"))
        case "reserve":
            run.reserve(value)
        case "file":
            try:
                run.text(run.file(value).decode())
            except LookupError as error:
                run.text(str(error))
        case "delegate":
            run.text(json.dumps([[one.output, one.is_error] for one in run.delegate_all(value)]))
        case "delegate_recorded" | "delegate_approved":
            _delegate_one(run, step, value)
        case "ask":
            run.text(run.ask(value, step.get("options", ()), key=step.get("key")))
        case "wait" if run.attempt <= step.get("attempts", run.attempt):
            run.wait(value)
        case "approve":
            reply = run.approve("append", {"line": value}, tool_call_id=step["id"])
            line = (reply.arguments or {"line": value})["line"]
            made = {name: step[name] for name in ("id", "path", "gate") if name in step}
            if not step.get("later"):
                _play(run, {"append": line, **made})
            run.text(reply.reason)
        case "raise":
            raise ValueError(value)
        case "lack":
            number = errno.EMFILE
            lack = MemoryError() if value == "memory" else OSError(number, os.strerror(number))
            raise RuntimeError("a framework's") from lack
        case "refuse":
            try:
                bytes(10**15)
            except MemoryError:
                raise ValueError(value) from None
        case "take_descriptors":
            taken = []
            while len(taken) < value:
                taken.append(select.epoll())
        case "swallow":
            _swallow(run, value)
        case "kill" if run.attempt <= value:
            os.kill(os.getpid(), signal.SIGKILL)


def _delegate_one(run: AgentRun, step: dict[str, Any], call: dict[str, str]) -> None:
    """Give out a task whose call is on record before: by hand, or since a person approves it."""
    call_id, made = call["tool_call_id"], {name: call[name] for name in ("persona", "task")}
    if "delegate_approved" in step:
        reply = run.approve("delegate", made, tool_call_id=call_id)
        made = made if reply.arguments is None else dict(reply.arguments)
    else:
        run.tool_call("delegate", made, tool_call_id=call_id)
    for other in step.get("between", ()):
        _play(run, other)
    also = step.get("also", [])
    given = run.delegate_all([{**made, "tool_call_id": call_id}, *also])
    run.text(json.dumps([[one.output, one.is_error] for one in given]))


def _append(run: AgentRun, step: dict[str, Any], line: str) -> str:
    """Append the line, wait until the `gate` is there, and play the step `within` this one."""
    with open(step["path"], "a") as file:
        file.write(f"{line}\n")
    while "gate" in step and not os.path.exists(step["gate"]):
        time.sleep(0.02)
    if "within" in step:
        _play(run, step["within"])
    if "ask" in step:
        return f"{line}: {run.ask(step['ask'])}"
    return f"appended {line}"


async def _awaited_in_step(run: AgentRun, step: dict[str, Any]) -> str:
    """Let a step wait for a coroutine, which this event loop executes."""
    loop = asyncio.get_running_loop()

    async def shout() -> str:
        await asyncio.sleep(0.01)
        return f"{step['await']}!"

    def make() -> str:
        return asyncio.run_coroutine_threadsafe(shout(), loop).result()

    return await asyncio.to_thread(run.step, "shout", {}, make, tool_call_id=step["id"])


def _arrive(run: AgentRun, folder: str) -> None:
    with open(f"{folder}/{run.run_id}", "w"):
        pass


def _are_there(step: dict[str, Any]) -> bool:
    return len(os.listdir(step["meet"])) >= step["count"]


def _swallow(run: AgentRun, seconds: float) -> None:
    """Ignore that the run has to stop."""
    try:
        run.wait(seconds)
    except BaseException:
        time.sleep(0)
