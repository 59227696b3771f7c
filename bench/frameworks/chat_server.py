"""A server with OpenAI's chat completions whose model looks after the orders of a shop."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

#: Tokens of each call, and those of its input that the cache had, and of its output for reasoning.
INPUT, OUTPUT, CACHED, REASONING = 100, 20, 60, 5


class ChatServer:
    """A server whose model calls two tools, then one, and then answers.

    It goes by the results in the request; it cancels a second order if the user says "A1 and B2",
    in the same turn, or "A1, then B2", and so on for "A1, then B2, then B2". While `is_slow` is
    set, it stops within its answer. While `counts_anew` is set, the ids of its calls are unique in
    a turn alone, as those of some servers. While `slips` is set, the arguments of `find_order` are
    no JSON, and while `cuts` is set, those of `cancel_order` break off where the model reaches its
    output limit. While `signs` is set, its ids have a signature in them, as those of Gemini behind
    LiteLLM. While `breaks_lines` is set, the order of `find_order` has a line break that is not
    escaped. It reports tokens if the request asks for them, and while `counts_nothing` is set not
    even then.
    """

    def __init__(self) -> None:
        self.is_slow, self.counts_anew = threading.Event(), threading.Event()
        self.slips, self.cuts, self.signs = (threading.Event() for _ in range(3))
        self.breaks_lines, self.counts_nothing = threading.Event(), threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                for chunk in server._chunks(body):
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                    self.wfile.flush()
                self.wfile.write(b"data: [DONE]\n\n")

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # its client was killed or cancelled
                    super().handle()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _chunks(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        results = [message for message in body["messages"] if message["role"] == "tool"]
        cancels = _cancels(body)
        if not results:
            yield _delta(role="assistant", content="Let me ")
            yield _delta(content="see. ")
            calls = [("call_a", "find_order", "A1"), ("call_b", "delivery_date", "A1")]
            yield from self._calls(calls)
        elif len(results) in cancels:
            yield _delta(role="assistant", content="")
            yield from self._calls(cancels[len(results)])
        else:
            yield _delta(role="assistant", content="It is ")
            while self.is_slow.is_set():
                threading.Event().wait(0.02)
                yield _delta(content="")
            yield _delta(content="cancelled.")
            yield _delta("stop")
        is_asked = (body.get("stream_options") or {}).get("include_usage")
        if is_asked and not self.counts_nothing.is_set():
            yield {**_delta(), "choices": [], "usage": _USAGE}

    def _calls(self, calls: list[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
        for index, (call_id, name, order_id) in enumerate(calls):
            id_ = f"call_{index}" if self.counts_anew.is_set() else call_id
            id_ += 1200 * "Q" if self.signs.is_set() else ""
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": id_, "type": "function", "function": function}
            yield _delta(tool_calls=[call])
            if name == "find_order" and self.breaks_lines.is_set():
                order_id += "\n"
            is_slip = name == "find_order" and self.slips.is_set()
            is_cut = name == "cancel_order" and self.cuts.is_set()
            end = f': "{order_id}' if is_cut else f': "{order_id}"}}'
            for piece in ('{"order_id"', "" if is_slip else end):
                yield _delta(tool_calls=[{"index": index, "function": {"arguments": piece}}])
        yield _delta("length" if is_cut else "tool_calls")


_USAGE = {
    "prompt_tokens": INPUT,
    "completion_tokens": OUTPUT,
    "total_tokens": INPUT + OUTPUT,
    "prompt_tokens_details": {"cached_tokens": CACHED},
    "completion_tokens_details": {"reasoning_tokens": REASONING},
}


def _cancels(body: Mapping[str, Any]) -> dict[int, list[tuple[str, str, str]]]:
    """Return the calls that cancel orders, by the number of results that come before."""
    said = json.dumps([one["content"] for one in body["messages"] if one["role"] == "user"])
    first = "call_c", "cancel_order", "A1"
    others = [(f"call_d{n or ''}", "cancel_order", "B2") for n in range(said.count(", then B2"))]
    if "A1 and B2" in said:
        return {2: [first, ("call_d", "cancel_order", "B2")]}
    return {2: [first], **{results: [call] for results, call in enumerate(others, 3)}}


def _delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"} | {
        "choices": [choice]
    }
