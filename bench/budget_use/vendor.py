"""A model vendor that counts tokens in a way of its own.

It speaks OpenAI's chat completions, answers a thread's text, and then calls tools until it may not.
A text has the same number of tokens whenever it is sent, at random from one for six bytes to one
for each: no tokenizer counts more (`worker/providers/token_counts.py`). The text of a thread is as
dense as the trial says.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

#: The beginning of a thread's text; the rest of its first line is its tokens per byte.
THREAD = "density "
#: Roles and separators.
MESSAGE_TOKENS = 4
ANSWER_BYTES = 2000
CALL_BYTES = 8000


def tokens_of(text: str) -> int:
    """Count as this vendor's tokenizer does."""
    if text.startswith(THREAD):
        density = float(text.removeprefix(THREAD).partition("\n")[0])
    else:
        density = Random(text).uniform(1 / 6, 1)
    return int(len(text.encode()) * density)


def answer_to(body: Mapping[str, Any]) -> tuple[dict[str, Any], str, dict[str, int]]:
    """Return the delta, the finish reason and the usage of a response."""
    texts = [json.dumps(body.get("tools", []))]
    for message in body["messages"]:
        texts += [message.get("content") or "", json.dumps(message.get("tool_calls", ""))]
    sent = sum(map(tokens_of, texts)) + MESSAGE_TOKENS * len(body["messages"])
    most, chance = body.get("max_tokens", ANSWER_BYTES), Random(sent)
    delta: dict[str, Any]
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    is_new = body["messages"][-1]["content"].startswith(THREAD)
    if is_new or body.get("tool_choice") == "none":
        text = "word " * (chance.randrange(10, ANSWER_BYTES) // 5)
        # As many tokens as bytes at most, so that the text is cut where its tokens are.
        delta, said = {"content": text[:most]}, text
    else:
        terms = "+1" * (chance.randrange(10, max(11, min(most, CALL_BYTES) - 200)) // 2)
        arguments = json.dumps({"expression": f"{turn}{terms}"})
        function = {"name": "calculator", "arguments": arguments}
        call = {"index": 0, "id": f"call-{turn}", "function": function}
        delta, said = {"tool_calls": [call]}, arguments
    written = min(most, tokens_of(said) + MESSAGE_TOKENS)
    reason = "length" if len(said) > most else "tool_calls" if "tool_calls" in delta else "stop"
    usage = {"prompt_tokens": sent, "completion_tokens": written, "total_tokens": sent + written}
    return delta, reason, usage


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        delta, reason, usage = answer_to(body)
        chunks = (
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
            {"choices": [], "usage": usage},
        )
        lines = [*map(json.dumps, chunks), "[DONE]"]
        stream = "".join(f"data: {line}\n\n" for line in lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(stream)))
        self.end_headers()
        self.wfile.write(stream)

    def log_message(self, format: str, *args: object) -> None:
        """Keep silent."""


@contextmanager
def counting_vendor() -> Iterator[str]:
    """Run the vendor in a thread; yields the `base_url` of a provider of the kind `openai`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
