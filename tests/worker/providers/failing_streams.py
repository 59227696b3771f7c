"""Streams of each vendor that stop in the middle or report an error there."""

import json
from typing import Any

from tests.worker.providers.fake_vendor import Answer, anthropic_stream, delta, openai_stream, raw

TEXT = "Grüße, 世界! 🚀"


def hello(provider: str, text: str = TEXT, *, ends: bool = True) -> bytes:
    """Build a stream with the text; without an end it stops in the middle, cleanly."""
    if provider == "openai":
        chunks = [delta(content=text), *[delta(finish="stop")] * ends]
        return openai_stream(*chunks, done=ends)
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "i", "type": "message", "role": "assistant", "content": [], "usage": usage}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}
    piece = {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": text},
    }
    finish = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": None}
    start = {"type": "message_start", "message": message}
    return anthropic_stream(start, block, piece, *[finish] * ends, stop=ends)


def in_stream(provider: str, error: Any) -> Answer:
    """Build a stream that reports an error after its first words."""
    body = json.dumps({"type": "error", "error": error})
    event = "event: error\n" if provider == "anthropic" else ""
    return raw(hello(provider, ends=False), f"{event}data: {body}\n\n".encode())
