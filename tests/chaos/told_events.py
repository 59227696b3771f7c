"""Events by name, with what the service writes into them."""

from typing import Any

Happened = tuple[str, dict[str, Any]]


def usage(read: int, written: int, source: str = "reported") -> dict[str, Any]:
    return {
        "input_tokens": read,
        "output_tokens": written,
        "cache_read_tokens": 0,
        "source": source,
    }


def started() -> Happened:
    return "run.started", {"persona_id": "assistant@1", "route_id": "scripted", "model": "m"}


def resumed(attempt: int, reason: str = "worker_lost") -> Happened:
    return "run.resumed", {"attempt": attempt, "reason": reason}


def deltas(*pieces: str) -> list[Happened]:
    return [("message.delta", {"content": piece}) for piece in pieces]


def reset(from_seq: int, reason: str = "resumed") -> Happened:
    return "message.reset", {"from_seq": from_seq, "reason": reason}


def completed_turn(message_id: str, content: str) -> Happened:
    return "message.completed", {
        "message_id": message_id,
        "content": content,
        "usage": usage(10, 2),
    }


def call(call_id: str, name: str, **arguments: Any) -> Happened:
    return "tool.call", {"tool_call_id": call_id, "name": name, "arguments": arguments}


def result(call_id: str, output: str = "appended", is_error: bool = False) -> Happened:
    data = {"tool_call_id": call_id, "name": "t", "output": output, "is_error": is_error}
    return "tool.result", {**data, "duration_ms": 1}


def waiting(request_id: str, call_id: str) -> Happened:
    data = {"request_id": request_id, "kind": "question", "prompt": "?", "tool_call_id": call_id}
    return "run.waiting_for_input", data


def received(request_id: str, content: str) -> Happened:
    return "run.input_received", {"request_id": request_id, "content": content}


def used(turns: int, more: int = 0) -> dict[str, Any]:
    """Compute usage and cost of these turns, and of `more` tokens of calls that broke off."""
    total = usage(10 * turns + more, 2 * turns, "estimated" if more else "reported")
    return {"usage": total, "cost_usd": round(0.001 * turns + 0.0001 * more, 8)}


def cost(turns: int, more: int = 0) -> Happened:
    return "run.cost", used(turns, more)


def completed(message_id: str | None, turns: int, more: int = 0) -> Happened:
    return "run.completed", {"message_id": message_id, "stop_reason": "stop", **used(turns, more)}


def failed(code: str, turns: int = 0) -> Happened:
    error = {"code": code, "message": code, "retryable": False}
    return "run.failed", {"error": error, **used(turns)}


def cancelled(turns: int = 0) -> Happened:
    return "run.cancelled", used(turns)


def expect(*statuses: str, **more: Any) -> dict[str, Any]:
    nothing = {"text": None, "effects": [], "asks": 0, "poison": False}
    return {"statuses": list(statuses), **nothing, **more}
