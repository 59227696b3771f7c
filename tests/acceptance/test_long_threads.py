"""Threads that are longer than the model's context, through the whole service."""

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest

from tests.caller import text_of, types
from tests.system import System

CONTEXT_TOKENS = 3_000
FACT = "The code is tulip-7."
SUMMARY = f"They talk about foxes. {FACT}"


class Vendor(ThreadingHTTPServer):
    """A server that speaks OpenAI's chat API, counts four characters as a token, and refuses what
    exceeds its context. It reports its context as vLLM does.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[list[dict[str, Any]]] = []
        self.summaries: list[list[dict[str, Any]]] = []
        self.refused = 0
        self.sent: list[bytes] = []  # all bodies, as they arrived
        #: Set while an answer is being written after a summary; it continues with the other.
        self.has_summarized, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, messages: list[dict[str, Any]]) -> str:
        texts = [_text(message) for message in messages]
        if "Summarize it" in texts[-1]:
            self.summaries.append(messages)
            return SUMMARY
        self.requests.append(messages)
        if self.summaries:
            self.has_summarized.set()
            self.may_answer.wait(100)
        if "code?" in texts[-1]:
            return FACT if any(FACT in text for text in texts) else "I do not know."
        return "Yes, " + "the fox is quick and brown. " * 8


class _Handler(BaseHTTPRequestHandler):
    server: Vendor

    def do_GET(self) -> None:
        self._send(200, "application/json", _json({"data": [_MODEL]}))

    def do_POST(self) -> None:
        self.server.sent.append(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.loads(self.server.sent[-1])
        tokens = sum(len(_text(message)) for message in body["messages"]) // 4
        if tokens > CONTEXT_TOKENS:
            self.server.refused += 1
            why = f"This model's maximum context length is {CONTEXT_TOKENS} tokens."
            error = {"message": why, "type": "invalid_request_error", "code": None}
            self._send(400, "application/json", _json({"error": error}))
            return
        text = self.server.answer(body["messages"])
        delta = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": tokens, "completion_tokens": 9, "total_tokens": tokens + 9}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        events = [{**chunk, "choices": [delta]}, {**chunk, "choices": [], "usage": usage}]
        data = b"".join(b"data: " + _json(event) + b"\n\n" for event in events)
        self._send(200, "text/event-stream", data + b"data: [DONE]\n\n")

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


_MODEL = {"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": CONTEXT_TOKENS}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@contextmanager
def serving() -> Iterator[Vendor]:
    vendor = Vendor()
    threading.Thread(target=vendor.serve_forever, daemon=True).start()
    try:
        yield vendor
    finally:
        vendor.may_answer.set()
        vendor.shutdown()
        vendor.server_close()


def set_up(system: System, vendor: Vendor, **persona: Any) -> Any:
    """Create an org that uses the vendor, with this persona."""
    owner = system.caller()
    models = [{"model": "m", "is_default": True, "max_output_tokens": 300}]
    owner.made(
        "/v1/llm-providers",
        {"name": "o", "kind": "openai", "base_url": vendor.url, "models": models},
    )
    owner.made("/v1/personas", {"key": "chatty", "system_prompt": "Chat.", **persona})
    return owner


def test_a_thread_of_many_runs_begins_as_it_did_until_the_point_moves(system: System) -> None:
    """The point is the thread's: each run's request begins as that of the run before it. Its size
    comes from the server, so no request is refused.
    """
    moved = 0
    with serving() as vendor:
        owner = set_up(system, vendor)
        thread = owner.thread("Hello")
        for number in range(30):
            owner.say(thread, f"{number}: {'the quick brown fox jumps over it; ' * 12}")
            run_id = owner.start(thread, persona_id="chatty")
            assert "completed" == owner.ended(run_id)["status"]
            moved += types(owner.events(run_id)).count("context.compacted")

    assert 0 == vendor.refused
    same = [two[: len(one)] == one for one, two in pairwise(vendor.requests)]
    assert 1 <= moved <= 4
    assert moved == same.count(False)


@pytest.mark.processes
def test_a_summary_outlives_its_worker_and_is_paid_for_once(system: System) -> None:
    """The worker is killed after the summary, during the answer: the next one goes by it."""
    with serving() as vendor:
        owner = set_up(system, vendor, compaction="summary")
        thread = owner.thread(FACT)
        for number in range(12):
            owner.say(thread, f"{number}: {'the quick brown fox jumps over it; ' * 18}")
        owner.say(thread, "What was the code?")
        vendor.may_answer.clear()
        run_id = owner.start(thread, persona_id="chatty")
        assert vendor.has_summarized.wait(100)
        os.kill(system.worker.pid, signal.SIGKILL)
        vendor.may_answer.set()
        run = owner.ended(run_id)
        events = owner.events(run_id)
        owner.say(thread, "And what was the code?")
        later = owner.ended(owner.start(thread, persona_id="chatty"))

    assert ("completed", "completed") == (run["status"], later["status"])
    assert FACT == text_of(events)
    [compacted] = [event["data"] for event in events if event["type"] == "context.compacted"]
    assert SUMMARY == compacted["summary"]
    assert 1 == len(vendor.summaries)
    assert 1 == types(events).count("run.resumed")
    assert SUMMARY in _text(vendor.requests[-1][1])
    # The summary's tokens are in the run's usage, once.
    asked = sum(len(_text(message)) for message in vendor.summaries[0]) // 4
    assert run["usage"]["input_tokens"] > asked
    assert re.fullmatch(r"\d+", str(compacted["upto_position"]))
