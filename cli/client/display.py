"""The display of a run's events: on a terminal, in a pipe, and as JSON lines."""

import json
import sys
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from arkloop.cli.client.event_stream import RunEvent
from arkloop.cli.output import compact, printable, shortened, write, write_json
from arkloop.shared.events.open_turn import OpenTurn

#: Longest one-line form of a tool's arguments or output on a terminal.
SHOWN_CHARACTERS = 160

_YELLOW = {
    *("message.reset", "message.completed", "run.cancelled"),
    *("run.throttled", "run.retrying", "run.fallback", "run.settings_dropped"),
    *("run.limit_reached", "context.truncated", "context.compacted"),
}
THROTTLED = {
    "requests": "the route has reached its requests per minute",
    "tokens": "the route has reached its tokens per minute",
    "provider": "the provider responded with HTTP 429",
    "budget": "other runs have reserved the rest of a budget",
    "memory": "long threads or files of other runs fill the worker's memory",
}


class Display(Protocol):
    """Shows events in order; what is not the run's output goes through `note`."""

    def show(self, event: RunEvent) -> None: ...

    def note(self, text: str, style: str = "dim") -> None:
        """Print a line of its own for the user."""


def display_for(*, as_json: bool) -> Display:
    """Choose the display that fits standard output."""
    if as_json:
        return JsonLines()
    return TerminalText() if sys.stdout.isatty() else PipedText()


class JsonLines:
    """A display that prints each event's JSON as it was sent, one per line, with control characters
    and surrogates escaped.
    """

    def __init__(self) -> None:
        self._notes = _console(stderr=True)

    def show(self, event: RunEvent) -> None:
        write_json(event.text)

    def note(self, text: str, style: str = "dim") -> None:
        _print_line(self._notes, text, style)


class PipedText:
    """The answer alone on standard output, everything else on standard error.

    A model turn is written when it is complete: what a pipe has taken cannot be
    taken back when a turn turns out to be void and is made again.
    """

    def __init__(self) -> None:
        self._notes = _console(stderr=True)
        self._open: list[tuple[int, str]] = []

    def show(self, event: RunEvent) -> None:
        match event.type:
            case "message.delta":
                self._open.append((event.seq, event.data["content"]))
            case "message.reset":
                self._open = [part for part in self._open if part[0] < event.data["from_seq"]]
            case "message.completed":
                is_output = "output_errors" not in event.data
                self._write(event.data["content"] if is_output else "")
        if event.is_terminal:
            self._write("".join(text for _seq, text in self._open))
        if line := line_of(event):
            self.note(line, style_of(event))

    def note(self, text: str, style: str = "dim") -> None:
        _print_line(self._notes, text, style)

    def _write(self, text: str) -> None:
        self._open.clear()
        if text:
            end = "" if text.endswith("\n") else "\n"
            write(f"{text}{end}")


class TerminalText:
    """The text as it comes, and arguments of calls if they are streamed; thinking dim, all else as
    short lines between.

    A terminal takes nothing back: what a reset keeps of the text is printed again after its line.
    """

    def __init__(self) -> None:
        self._console = _console()
        self._open_turn = OpenTurn()
        self._streamed: tuple[str, str | None] = ("", None)
        self._shown_calls: set[str] = set()
        self._at_line_start = True

    def show(self, event: RunEvent) -> None:
        for one in self._open_turn.add(event._asdict()):
            self._show(RunEvent(**one))

    def note(self, text: str, style: str = "dim") -> None:
        self._start_line()
        _print_line(self._console, text, style)

    def _show(self, event: RunEvent) -> None:
        data = event.data
        match event.type:
            case "message.delta":
                self._stream(event, data["content"], "")
            case "message.thinking":
                self._stream(event, data["content"], "dim italic")
            case "tool.call.delta":
                self._stream(event, data["arguments_delta"], "cyan")
                self._shown_calls.add(data["tool_call_id"])
            case "message.reset":
                self._shown_calls.clear()
        if event.type == "tool.call" and data["tool_call_id"] in self._shown_calls:
            return
        if line := line_of(event):
            self.note(line, style_of(event))

    def _stream(self, event: RunEvent, text: str, style: str) -> None:
        streamed = (event.type, event.data.get("tool_call_id"))
        if streamed != self._streamed:
            self._start_line()
            if event.type == "tool.call.delta":
                text = f"→ {event.data['name']} {text}"
        self._streamed = streamed
        text = printable(text)
        # soft_wrap: the terminal breaks lines; rich does not know what stands left of a delta.
        self._console.print(Text(text, style), end="", soft_wrap=True)
        self._at_line_start = text.endswith("\n") if text else self._at_line_start

    def _start_line(self) -> None:
        if not self._at_line_start:
            self._console.print()
        self._at_line_start = True


def line_of(event: RunEvent) -> str | None:
    """Render the event as a line for a person; None for events that are text, or add nothing."""
    data = event.data
    match event.type:
        case "tool.call":
            return f"→ {data['name']} {_short(compact(data['arguments']))}"
        case "tool.progress":
            return _progress(data)
        case "tool.result":
            mark = "✗" if data["is_error"] else "←"
            return f"{mark} {data['name']} {_short(data['output'])} ({data['duration_ms']} ms)"
        case "message.reset":
            return f"✗ Discard the unfinished text above ({data['reason']}): the model starts again"
        case "message.completed" if "output_errors" in data:
            return f"✗ The output does not fit: {_short(' '.join(data['output_errors']))}"
        case "run.input_received":
            return f"answered: {_short(data['content'])}"
        case "run.resumed" if data["reason"] != "input":
            return f"resumed ({data['reason']}, attempt {data['attempt']})"
        case "run.throttled":
            why = THROTTLED.get(data["reason"], data["reason"])
            return f"waiting: {why}; retrying in {data['seconds']:g} s"
        case "run.retrying":
            tries = f"try {data['try_number']}"
            return f"the model call failed ({data['code']}); {tries} in {data['seconds']:g} s"
        case "run.settings_dropped" if data["settings"] == ["max_output_tokens"]:
            return f"{data['route_id']} writes less than max_output_tokens: its own maximum applies"
        case "run.settings_dropped":
            names = ", ".join(data["settings"])
            return f"{data['route_id']} does not support {names}"
        case "run.fallback":
            return f"{data['model']} ({data['to_route_id']}) takes over after {data['reason']}"
        case "run.limit_reached":
            return f"{data['message']} One last call without tools gives the answer."
        case "context.truncated":
            return f"too long for the model: {data['dropped_messages']} old messages omitted"
        case "context.compacted" if "summary" in data:
            return f"too long for the model: {data['dropped_messages']} old messages summarized"
        case "run.cancel_requested":
            return "cancelling …"
        case "run.completed" | "run.cancelled":
            return f"{event.type.removeprefix('run.')}: {_cost(event)}"
        case "run.failed":
            error = data["error"]
            return f"failed: {error['message']} ({error['code']}) {_cost(event)}"
    return None


def in_full(arguments: object) -> str:
    """Render the arguments of a call for approval: nothing is cut, nothing invisible."""
    text = json.dumps(arguments, ensure_ascii=False, indent=2)
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


def style_of(event: RunEvent) -> str:
    """Choose the colour of the event's line."""
    if event.type == "run.failed" or event.data.get("is_error"):
        return "red"
    if event.type in _YELLOW:
        return "yellow"
    return "cyan" if event.type == "tool.call" else "dim"


def _print_line(console: Console, text: str, style: str) -> None:
    console.print(Text(printable(text), style), soft_wrap=True)


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def _cost(event: RunEvent) -> str:
    usage = event.data["usage"]
    estimated = ", estimated" if usage["source"] == "estimated" else ""
    return (
        f"{usage['input_tokens']} + {usage['output_tokens']} tokens{estimated}, "
        f"${event.data['cost_usd']:.6f}"
    )


def _progress(data: dict[str, Any]) -> str:
    reached = f"{data['progress']:g}"
    if "total" in data:
        reached += f" of {data['total']:g}"
    return f"… {reached}" + (f": {_short(data['message'])}" if "message" in data else "")


def _short(text: str) -> str:
    return shortened(" ".join(text.split()), SHOWN_CHARACTERS)
