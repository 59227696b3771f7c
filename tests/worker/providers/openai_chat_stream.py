"""Answers of chat completions that tests share."""

from typing import Any

from arkloop.worker.contract.messages import Chunk, ModelRequest, TurnEnd
from tests.worker.providers.fake_vendor import REQUEST, ask, openai_stream, raw, vendor


def answered(*chunks: Any, request: ModelRequest = REQUEST, done: bool = True) -> list[Chunk]:
    with vendor(raw(openai_stream(*chunks, done=done))) as fake:
        return ask("openai", fake.url, request)


def end(*chunks: Any, request: ModelRequest = REQUEST) -> TurnEnd:
    last = answered(*chunks, request=request)[-1]
    assert isinstance(last, TurnEnd)
    return last
