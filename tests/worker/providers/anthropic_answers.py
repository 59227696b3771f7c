"""Pieces of Anthropic's answers that tests share."""

from typing import Any


def start(**usage: Any) -> dict[str, Any]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m"}
    return {"type": "message_start", "message": {**message, "usage": usage}}


def block(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": fields}


def piece(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def text(index: int, *pieces: str) -> list[dict[str, Any]]:
    return [
        block(index, type="text", text=""),
        *(piece(index, "text_delta", text=part) for part in pieces),
        {"type": "content_block_stop", "index": index},
    ]


def finish(reason: str | None, **usage: Any) -> dict[str, Any]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": delta, "usage": usage}
