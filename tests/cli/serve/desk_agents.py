"""Agents that the tests serve; each step is a line in the file that `STEPS` names."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from arkloop.agents import AgentRun


def note(line: str) -> None:
    with Path(os.environ["STEPS"]).open("a") as steps:
        steps.write(f"{line}\n")


def looker(run: AgentRun) -> str:
    """Call a tool, count its cost, and answer."""
    run.thinking("Let me think.")
    run.text("Let me ")
    run.text("see.")
    run.tool_call("look_up", {"item": "lamp"}, tool_call_id="look-1")
    found = run.step("look_up", {"item": "lamp"}, lambda: 7, tool_call_id="look-1")
    run.cost(0.25, model="theirs", input_tokens=10)
    run.text("There are ")
    return f"There are {found} for {run.end_user_id}."


async def waiter(run: AgentRun) -> str:
    """Wait for as long as the message says, and clean up."""
    note("waits")
    try:
        await asyncio.sleep(float(run.messages[0]["content"]))
    except asyncio.CancelledError:
        note("cancelled")
        raise
    return "done"


def decorated_waiter(run: AgentRun) -> object:
    """Return what `waiter` returns to be awaited."""
    return waiter(run)


def sleeper(run: AgentRun) -> str:
    """Wait as `waiter` does."""
    note("waits")
    try:
        run.wait(float(run.messages[0]["content"]))
    except BaseException as reason:
        note(f"stopped: {reason}")
        raise
    return "done"


def caller(run: AgentRun) -> None:
    """Wait for a model that is called and bills 0.3 USD, and report it, as floats add up."""
    note("calls")
    try:
        run.wait(30)
    finally:
        run.cost(0.1 + 0.2, input_tokens=3)


def stepper(run: AgentRun) -> str:
    """Make steps, each stored in a checkpoint, and wait in the middle of the second one."""
    done = run.checkpoint_data or []
    for number in range(len(done), 3):
        run.text(f"Step {number}. ")
        run.step(
            "do", {"n": number}, lambda n=number: note(f"do {n}") or n, tool_call_id=f"do-{number}"
        )
        done.append(number)
        run.checkpoint(done)
        if number == 1 and run.attempt == 1 and len(run.messages) == 1:
            run.text("lost text")
            note("in the middle")
            time.sleep(30)
    return f"did {done}"


def resting(run: AgentRun) -> str:
    """Store a checkpoint again and again until it has a second life."""
    if run.checkpoint_data:
        return f"rested {run.checkpoint_data['times'] > 0}"
    times = 0
    while True:
        times += 1
        run.checkpoint({"times": times})
        note("rests")
        time.sleep(0.1)


def finisher(run: AgentRun) -> None:
    """Say everything, and return at once in a second life."""
    if run.checkpoint_data is None:
        run.text("All of it.")
        run.checkpoint("said")
        note("said")
        time.sleep(30)


async def editor(run: AgentRun) -> str:
    """Give out two tasks, then one more, within a reservation."""
    run.text("Both parts. ")
    tasks = json.loads(run.messages[0]["content"])
    parts = run.delegate_all(
        [
            {"persona": "plain", "task": task, "tool_call_id": f"part-{number}"}
            for number, task in enumerate(tasks)
        ]
    )
    run.reserve(0.5)
    last = run.delegate("plain", tasks[0], tool_call_id="last")
    note(f"done {[part.is_error for part in parts]}")
    return "Both parts. " + ", ".join(part.output for part in (*parts, last))


def greedy(run: AgentRun) -> str:
    """Reserve more than the budget has."""
    run.reserve(0.5)
    run.cost(0.5)
    run.reserve(0.75)
    return "rich"


def asker(run: AgentRun) -> str:
    """Ask twice."""
    name = run.ask("Who are you?")
    colour = run.ask("Which colour?", ["red", "blue"], key="colour")
    return f"{name} likes {colour}"


async def reader(run: AgentRun) -> str:
    """Read the file of the message."""
    [file] = run.messages[0]["files"]
    content = await asyncio.to_thread(run.file, file["file_id"])
    return f"{file['name']}: {content.decode()}"


def confirmer(run: AgentRun) -> str:
    """Record two payments, and ask within the first one."""
    for number in (1, 2):
        run.tool_call("pay", {"n": number}, tool_call_id=f"pay-{number}")

    def pay(number: int) -> str:
        reply = run.ask("Go?") if number == 1 else "yes"
        note(f"pays {number}: {reply}")
        return reply

    return ", ".join(
        run.step("pay", {"n": n}, lambda n=n: pay(n), tool_call_id=f"pay-{n}") for n in (1, 2)
    )


def payer(run: AgentRun) -> str:
    """Make two payments, each with a person's approval."""
    paid = [run.approve("pay", {"amount": n}, tool_call_id=f"pay-{n}") for n in (5, 6)]
    return ", ".join(
        run.step(
            "pay",
            reply.arguments or {"amount": n},
            lambda n=n, reply=reply: note(f"pays {reply.arguments or n}"),
            tool_call_id=f"pay-{n}",
        )
        for n, reply in zip((5, 6), paid, strict=True)
    )


def hanging_payer(run: AgentRun) -> str:
    """Make an approved payment, which hangs in the first attempt once it has taken effect."""

    def pay() -> str:
        note("pays")
        if run.attempt == 1:
            time.sleep(60)
        return "paid"

    run.approve("pay", {}, tool_call_id="pay-1")
    return run.step("pay", {}, pay, tool_call_id="pay-1")


def failing(_run: AgentRun) -> str:
    raise ValueError("postgres://user:password@db")


def misnaming(run: AgentRun) -> None:
    """Record a call under an id that is too long."""
    run.tool_call("pay", {}, tool_call_id="p" * 200)


def mispriced(run: AgentRun) -> str:
    """Report a call whose price nobody knows."""
    note("began")
    run.cost(model="nobody-knows-it", input_tokens=10)
    return "free"


def refused(run: AgentRun) -> str:
    """Report a call of a model whose name is too long for the service."""
    run.cost(0.1, model="m" * 201)
    return "free"


def misfit(_run: AgentRun) -> dict[str, str]:
    """Return an object that is not of the form which the persona requires."""
    return {"n": "one"}


def sayer(run: AgentRun) -> str:
    """Make a step that may be repeated, after some text; its first execution hangs within it."""
    run.text("Looking. ")

    def look() -> str:
        note("looks")
        if run.attempt == 1:
            time.sleep(30)
        return "found"

    return run.step("look", {}, look, tool_call_id="look-1", idempotent=True)


def collector(run: AgentRun) -> str:
    """Make a payment, read much, and ask: all of it once more after the answer."""
    paid = run.step("pay", {}, lambda: note("pays") or "paid", tool_call_id="pay-1")
    for number in range(140):
        run.step("read", {}, lambda: "x" * 65_000, tool_call_id=f"read-{number}")
    return f"{paid}, {run.ask('Enough?')}"


def pieces(run: AgentRun) -> Iterator[None]:
    """Yield, which no worker could carry on from: it cannot be served."""
    yield run.text("Hello")


def main() -> None:
    """Have no argument: it cannot be served, either."""
