"""The scenarios, each of which returns what is measured."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import count

from arkloop.shared.catalog import prices
from arkloop.shared.catalog.personas import Persona
from arkloop.worker import tools
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ModelRequest, ToolCall, ToolMessage, UserMessage
from arkloop.worker.tools import tool
from bench.context.talk import Talk, Vendor, cost

#: In the price library: 128,000 tokens of context, a tenth of the price for cached ones.
MODEL = "gpt-5.3"
#: What some tokenizers make of a text: each digit is one, and up to four letters are.
_TOKEN = re.compile(r"\d|[^\W\d]{1,4}|[^\w\s]|\s+")
_NOTE = re.compile(r'read_result with the id "([\d.]+)"')


def by_four(text: str) -> int:
    """Count four characters as a token, as is usual for English."""
    return -(-len(text) // 4)


def strictly(text: str) -> int:
    """Count as tokenizers do that make the most tokens of numbers and hexadecimals."""
    return sum(1 for _ in _TOKEN.finditer(text))


@dataclass(frozen=True)
class Steps:
    """A run of many steps: costs, and how much of each request the next one begins with."""

    usd: Decimal
    usd_without_cache: Decimal
    truncations: int
    shared: list[float]
    refused: int

    @property
    def shared_between_truncations(self) -> float:
        """The least of all pairs of requests between two truncations."""
        return sorted(self.shared)[self.truncations]


def many_steps(steps: int = 200, size: int = 8_192, context_tokens: int = 128_000) -> Steps:
    """Make a run whose every step returns `size` bytes."""
    numbers = count()

    @tool(idempotent=True)
    def page(context: ToolContext, number: int) -> str:
        """Return a page."""
        return (f"{number}: " + "the quick brown fox jumps over it; " * size)[:size]

    def answer(request: ModelRequest) -> tuple[str, tuple[ToolCall, ...]]:
        number = next(numbers)
        if number == steps:
            return "Done.", ()
        return "", (ToolCall(f"c{number}", "page", {"number": number}),)

    vendor = Vendor(context_tokens, by_four, answer)
    persona = Persona(key="t", version="1", system_prompt="Read all.", max_steps=steps + 1)
    talk = Talk(vendor, {"page": page}, persona, context_tokens)
    talk.ask("Read all pages.")
    known = prices.known("openai", MODEL, None)
    assert known is not None
    without = [replace(usage, cache_read_tokens=0) for usage in vendor.usages]
    return Steps(
        cost(vendor.usages, known),
        cost(without, known),
        talk.truncations,
        vendor.shared_parts(),
        vendor.refused,
    )


def digits(random_: random.Random) -> str:
    """Write numbers."""
    return " ".join(str(random_.randrange(10**9)) for _ in range(120))


def hexadecimal(random_: random.Random) -> str:
    """Write bytes in hexadecimal."""
    return random_.randbytes(600).hex()


def nested(random_: random.Random) -> str:
    """Write JSON."""
    rows = [{"id": random_.randrange(10**6), "ok": True, "at": [1.5, None]} for _ in range(30)]
    return json.dumps(rows)


TEXTS: dict[str, Callable[[random.Random], str]] = {
    "digits": digits,
    "hexadecimal": hexadecimal,
    "JSON": nested,
}


def dense_thread(
    text: Callable[[random.Random], str], turns: int, context_tokens: int | None
) -> tuple[int, int]:
    """Hold a conversation of such texts with a model of 4,096 tokens; return answers and refusals.

    `context_tokens` is what the route says of it.
    """
    random_ = random.Random(1)
    vendor = Vendor(4_096, strictly, lambda _request: ("Noted: " + text(random_)[:300], ()))
    persona = Persona(key="t", version="1", system_prompt="Note it.", max_output_tokens=500)
    talk = Talk(vendor, {}, persona, context_tokens)
    answers = sum(bool(talk.ask(text(random_))) for _ in range(turns))
    return answers, vendor.refused


@dataclass(frozen=True)
class LongResults:
    """A run with long results: its answer, and how often `read_result` was called."""

    answer: str
    reads: int
    refused: int


def long_results(results: int, size: int, context_tokens: int) -> LongResults:
    """Let a model find a word in the middle of each of these results of one turn."""
    reads: list[str] = []

    @tool(idempotent=True)
    def log_of(context: ToolContext, day: int) -> str:
        """Return the log of a day."""
        line = "12:00:00 INFO request 4711 served in 12 ms\n"
        half = line * (size // len(line) // 2)
        return f"{half}PASSWORD: tulip-{day}\n{half}"

    def answer(request: ModelRequest) -> tuple[str, tuple[ToolCall, ...]]:
        messages = request.messages
        if not any(isinstance(m, ToolMessage) for m in messages):
            return "", tuple(ToolCall(f"c{i}", "log_of", {"day": i}) for i in range(results))
        noted = {m for message in messages for m in _NOTE.findall(message.content)}
        offered = any(spec.name == "read_result" for spec in request.tools)
        wanted = [one for one in sorted(noted) if offered and one not in reads]
        if wanted:
            reads.append(wanted[0])
            call = {"id": wanted[0], "pattern": "PASSWORD: .*"}
            return "", (ToolCall(f"r{len(reads)}", "read_result", call),)
        found = {word for m in messages for word in re.findall(r"tulip-\d+", m.content)}
        return " ".join(sorted(found)), ()

    vendor = Vendor(context_tokens, by_four, answer)
    persona = Persona(key="t", version="1", system_prompt="Find it.", max_steps=results + 3)
    offered = {"log_of": log_of, **tools.load(["read_result"])}
    talk = Talk(vendor, offered, persona, context_tokens)
    return LongResults(talk.ask("Which passwords are in the logs?"), len(reads), vendor.refused)


def remembered(turns: int, context_tokens: int = 8_000) -> tuple[bool, int, float]:
    """Give a fact in turn 1 and ask for it in the last one, with `compaction: summary`.

    Returns whether it is found, the number of summaries, and the part of all tokens that they cost.
    """
    fact = "The code is tulip-7."
    summaries: list[int] = []

    def answer(request: ModelRequest) -> tuple[str, tuple[ToolCall, ...]]:
        seen = any(fact in message.content for message in request.messages)
        if request.is_summary:
            summaries.append(sum(by_four(m.content) for m in request.messages))
            return (fact if seen else "Nothing.") + " They talk about foxes.", ()
        last = [m for m in request.messages if isinstance(m, UserMessage)][-1]
        return (fact if seen else "I do not know.") if "code?" in last.content else "Yes.", ()

    vendor = Vendor(context_tokens, by_four, answer)
    persona = Persona(key="t", version="1", system_prompt="Chat.", compaction="summary")
    talk = Talk(vendor, {}, persona, context_tokens)
    talk.ask(fact)
    for number in range(turns - 2):
        talk.ask(f"{number}: " + "the quick brown fox jumps over it; " * 8)
    found = talk.ask("What was the code?") == fact
    every = sum(usage.input_tokens for usage in vendor.usages)
    return found, len(summaries), sum(summaries) / every
