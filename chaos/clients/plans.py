"""The requests of the clients of a chaos run: scripts, and what a correct system makes of them."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Step = dict[str, Any]

#: How often each kind comes, if nobody says otherwise.
WEIGHTS: Mapping[str, float] = {
    "talk": 4,
    "tools": 3,
    "ask": 3,
    "cancel": 2,
    "retry": 2,
    "busy": 1,
}


@dataclass(frozen=True)
class Plan:
    """A run, and what its clients do to it. Times are in seconds."""

    kind: str
    steps: tuple[Step, ...]
    #: The statuses that it may end with.
    statuses: tuple[str, ...] = ("completed",)
    #: What a client shows in the end, if that can be known.
    text: str | None = None
    #: The lines that its tools append, each once.
    effects: tuple[str, ...] = ()
    asks: int = 0
    #: Whether somebody answers its questions, and whether a rival answers at the same time.
    answers: bool = True
    rival: bool = False
    #: When somebody cancels it, counted from its acceptance.
    cancel_after: float | None = None
    #: Whether two clients create a run in its thread at the same time.
    twice: bool = False
    #: Whether it kills its worker each time.
    poison: bool = False

    @property
    def message(self) -> str:
        """The message that makes the scripted model do it."""
        return json.dumps({"script": list(self.steps)})

    @property
    def expect(self) -> dict[str, Any]:
        """The same for the checker."""
        return {
            "statuses": list(self.statuses),
            "text": self.text,
            "effects": list(self.effects),
            "asks": self.asks,
            "poison": self.poison,
        }


def plan(kind: str, name: str, sink: Path, rng: random.Random) -> Plan:
    """Make a plan of this kind; `name` is unique in the load."""
    return _KINDS[kind](name, sink, rng)


def _talk(name: str, sink: Path, rng: random.Random) -> Plan:
    thought = ({"think": f"{name} has to say something. ", "delay_ms": 10},)
    before = thought if rng.random() < 0.4 else ()
    if rng.random() < 0.3:
        return Plan("talk", (*before, {"count": rng.randint(25, 100), "delay_ms": 20}))
    said = _say(f"{name} ", rng.randint(25, 100), 20)
    return Plan("talk", (*before, said), text=_text(said))


def _tools(name: str, sink: Path, rng: random.Random) -> Plan:
    effects = tuple(f"{name}:{letter}" for letter in "abc")
    first, *others = ({"path": str(sink), "line": line} for line in effects)
    pause = {"tool": "sleep", "args": {"seconds": round(rng.uniform(0.05, 0.5), 2)}}
    said = [_say(f"{name}.{turn} ", rng.randint(3, 15), 20) for turn in range(3)]
    steps = (
        said[0],
        {"tool": "append_line", "args": first},
        said[1],
        {"tools": [*({"tool": "append_line", "args": args} for args in others), pause]},
        said[2],
    )
    return Plan("tools", steps, text=_text(*said), effects=effects)


def _ask(name: str, sink: Path, rng: random.Random) -> Plan:
    asks = rng.choice((1, 1, 2))
    said = [_say(f"{name}.{turn} ", rng.randint(2, 15), 20) for turn in range(asks + 1)]
    steps: list[Step] = []
    for turn in range(asks):
        question = {"question": f"{name}.{turn}?", "options": ["yes", "no"]}
        steps += [said[turn], {"tool": "ask_user", "args": question}]
    rival = rng.random() < 0.4
    return Plan("ask", (*steps, said[-1]), text=_text(*said), asks=asks, rival=rival)


def _cancel(name: str, sink: Path, rng: random.Random) -> Plan:
    after = rng.choice((0.0, rng.uniform(0.05, 1.5)))
    said = _say(f"{name} ", 10, 20)
    asked: Step = {"tool": "ask_user", "args": {"question": f"{name}?"}}
    steps: tuple[Step, ...]
    match rng.randrange(3):
        case 0:
            # Nobody answers, so it cannot end by itself.
            return Plan(
                "cancel",
                (said, asked),
                statuses=("cancelled",),
                asks=1,
                answers=False,
                cancel_after=after,
            )
        case 1:
            steps, text = (said, {"hang": 60}), _text(said)
        case _:
            long = _say(f"{name} ", 1000, 30)
            steps, text = (long,), _text(long)
    statuses = ("cancelled", "completed")
    return Plan("cancel", steps, statuses=statuses, text=text, cancel_after=after)


def _retry(name: str, sink: Path, rng: random.Random) -> Plan:
    before, after = (_say(f"{name}{i} ", rng.randint(3, 15), 20) for i in (".0", ".1"))
    error = rng.choice(("overloaded", "rate_limited", "disconnect"))
    times = rng.choice((1, 2)) if error == "rate_limited" else 1
    steps = (before, {"error": error, "times": times}, after)
    return Plan("retry", steps, text=_text(before, after))


def _busy(name: str, sink: Path, rng: random.Random) -> Plan:
    said = _say(f"{name} ", rng.randint(10, 30), 20)
    return Plan("busy", (said,), text=_text(said), twice=True)


def _poison(name: str, sink: Path, rng: random.Random) -> Plan:
    steps = (_say(f"{name} ", rng.randint(1, 10), 20), {"exit_worker": True})
    return Plan("poison", steps, statuses=("failed",), poison=True)


def _cut(name: str, sink: Path, rng: random.Random) -> Plan:
    """Plan tools, and a cancel in the middle of them."""
    return replace(
        _tools(name, sink, rng),
        kind="cut",
        statuses=("cancelled", "completed"),
        cancel_after=rng.uniform(0.3, 1.5),
    )


def _long(name: str, sink: Path, rng: random.Random) -> Plan:
    """Plan one step that takes longer than it takes to lose a worker."""
    said = _say(f"{name} ", 250, 20)
    return Plan("long", (said,), text=_text(said))


def _stopped(name: str, sink: Path, rng: random.Random) -> Plan:
    """Plan a long run, and a cancel that mostly finds it with a worker."""
    statuses = ("cancelled", "completed")
    cancel_after = rng.uniform(0.5, 4)
    return replace(
        _long(name, sink, rng), kind="stopped", statuses=statuses, cancel_after=cancel_after
    )


def _say(words: str, repeat: int, delay_ms: int) -> Step:
    return {"say": words, "repeat": repeat, "delay_ms": delay_ms}


def _text(*said: Step) -> str:
    return "".join(step["say"] * step["repeat"] for step in said)


_KINDS: Mapping[str, Callable[[str, Path, random.Random], Plan]] = {
    "talk": _talk,
    "tools": _tools,
    "ask": _ask,
    "cancel": _cancel,
    "retry": _retry,
    "busy": _busy,
    "poison": _poison,
    "cut": _cut,
    "long": _long,
    "stopped": _stopped,
}
