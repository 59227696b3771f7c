"""OpenAI as it answers a stateless client, with the rules that it publishes.

Sources: the API reference of `POST /v1/responses`, the guides "Reasoning models" (keeping reasoning
items in context, encrypted reasoning items) and "Function calling" at
https://developers.openai.com/api/docs, and the error texts that users report, among them
https://github.com/openai/openai-openapi/issues/541 (function tools on chat completions).

- Chat completions refuses function tools for a reasoning model, which reasons without being asked.
- Parameters and fields that are not in the reference are refused.
- With `store: false`, a reasoning item needs its `encrypted_content`, as it was issued.
- A function call goes with the reasoning before it, and reasoning with what came after it.
- There is an input. Every call has its output, every output its call, and no id comes twice.
- While it reasons, a model has neither `temperature` nor `top_p`, and only some of the efforts
  (guide "Reasoning models"; https://github.com/OpenHands/software-agent-sdk/issues/1837).
- Encrypted reasoning cannot be asked of a model that does not reason; summaries only by an account
  that is verified; at least 16 output tokens.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Items = Sequence[Mapping[str, Any]]

_PARAMETERS = {
    "include", "input", "instructions", "max_output_tokens", "metadata", "model",
    "parallel_tool_calls", "reasoning", "store", "stream", "temperature", "text", "tool_choice",
    "tools", "top_p", "truncation",
}  # fmt: skip
_FIELDS = {
    "message": {"type", "role", "content", "id", "status", "phase"},
    "reasoning": {"type", "id", "summary", "content", "encrypted_content", "status"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status"},
    "function_call_output": {"type", "id", "call_id", "output", "status"},
}
_EFFORTS = ("none", "low", "medium", "high", "xhigh")
_TOOL = {"type", "name", "description", "parameters", "strict"}
USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 8},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 30},
    "total_tokens": 150,
}


def reasoning(name: str, *summary: str) -> dict[str, Any]:
    parts = [{"type": "summary_text", "text": text} for text in summary]
    encrypted = f"gAAAA-{name}"
    return {"type": "reasoning", "id": f"rs_{name}", "summary": parts, "content": None,
            "encrypted_content": encrypted, "status": "completed"}  # fmt: skip


def message(name: str, text: str, **fields: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "id": f"msg_{name}", "role": "assistant", "status": "completed",
            "content": [part], **fields}  # fmt: skip


def refusal(name: str, text: str) -> dict[str, Any]:
    part = {"type": "refusal", "refusal": text}
    return {**message(name, ""), "content": [part]}


def function_call(name: str, tool: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function_call", "id": f"fc_{name}", "call_id": f"call_{name}", "name": tool,
            "arguments": json.dumps(arguments), "status": "completed"}  # fmt: skip


class Refused(Exception):
    def __init__(self, status: int, text: str, param: str | None = None, code: Any = None) -> None:
        super().__init__(text)
        self.status = status
        self.error = {"message": text, "type": "invalid_request_error", "param": param,
                      "code": code}  # fmt: skip


class OpenAIVendor:
    """Answers with what `turn` returns for a request's body: the output items.

    `end` changes the last event of a stream, and so may say that the response is incomplete.
    """

    def __init__(
        self,
        turn: Callable[[Mapping[str, Any]], Items],
        *,
        reasons: bool = True,
        is_verified: bool = True,
        end: Callable[[dict[str, Any]], dict[str, Any]] = lambda event: event,
    ) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self._turn, self._end = turn, end
        self._reasons, self._is_verified = reasons, is_verified
        self._issued: list[Items] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(vendor) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                vendor.bodies.append(body)
                try:
                    if self.path == "/v1/chat/completions":
                        vendor._check_chat(body)
                    vendor._check(body)
                except Refused as refused:
                    vendor.refused.append(refused.error)
                    self._send(refused.status, json.dumps({"error": refused.error}))
                    return
                items = vendor._turn(body)
                vendor._issued.append(items)
                events = vendor._events(items)
                lines = [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events]
                self._send(200, "".join(lines), "text/event-stream")

            def _send(self, status: int, text: str, kind: str = "application/json") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    # ---- rules -----------------------------------------------------------------------

    def _check_chat(self, body: Mapping[str, Any]) -> None:
        if self._reasons and body.get("tools"):
            text = (
                f"Function tools with reasoning_effort are not supported for {body['model']} in"
                " /v1/chat/completions. To use function tools, use /v1/responses or set"
                " reasoning_effort to 'none'."
            )
            raise Refused(400, text, "reasoning_effort")
        raise Refused(404, "Not part of this vendor.")

    def _check(self, body: Mapping[str, Any]) -> None:
        for name in body.keys() - _PARAMETERS:
            raise Refused(400, f"Unknown parameter: '{name}'.", name, "unknown_parameter")
        if not self._reasons and "reasoning.encrypted_content" in body.get("include", ()):
            raise Refused(400, "Encrypted content is not supported with this model.", "include")
        if "summary" in body.get("reasoning", {}) and not (self._reasons and self._is_verified):
            text = "Your organization must be verified to generate reasoning summaries."
            raise Refused(400, text, "reasoning.summary", "unsupported_value")
        effort = body.get("reasoning", {}).get("effort", "medium")
        if effort not in _EFFORTS:
            text = (
                f"Unsupported value: '{effort}' is not supported with the '{body['model']}' model."
            )
            raise Refused(400, text, "reasoning.effort", "unsupported_value")
        for name in ("temperature", "top_p"):
            if self._reasons and effort != "none" and name in body:
                text = f"Unsupported parameter: '{name}' is not supported with this model."
                raise Refused(400, text, name)
        if body.get("max_output_tokens", 16) < 16:
            text = "Invalid 'max_output_tokens': integer below minimum value."
            raise Refused(400, text, "max_output_tokens", "integer_below_min_value")
        for tool in body.get("tools", ()):
            if tool.keys() - _TOOL or "properties" not in tool["parameters"]:
                raise Refused(400, "Invalid tool.", "tools", "invalid_function_parameters")
        assert body["store"] is False and body["stream"] is True
        self._check_input(body["input"])

    def _check_input(self, items: Items) -> None:
        if not items:
            raise Refused(400, "Missing required parameter: 'input'.", "input")
        ids = [item["id"] for item in items if "id" in item]
        for item_id in ids:
            if ids.count(item_id) > 1:
                raise Refused(400, f"Duplicate item found with id {item_id}.", "input")
        calls = [item["call_id"] for item in items if item["type"] == "function_call"]
        outputs = [item["call_id"] for item in items if item["type"] == "function_call_output"]
        for call_id in calls:
            if outputs.count(call_id) != 1:
                raise Refused(400, f"No tool output found for function call {call_id}.", "input")
        for call_id in outputs:
            if call_id not in calls:
                text = f"No tool call found for function call output with call_id {call_id}."
                raise Refused(400, text, "input")
        for place, item in enumerate(items):
            for name in item.keys() - _FIELDS[item["type"]]:
                where = f"input[{place}].{name}"
                raise Refused(400, f"Unknown parameter: '{where}'.", where, "unknown_parameter")
            if item["type"] == "reasoning":
                self._check_reasoning(item, items[place + 1 :])
            if item["type"] == "function_call":
                self._check_call(item, items[:place])

    def _check_reasoning(self, item: Mapping[str, Any], after: Items) -> None:
        turn, issued = self._found("id", item["id"])
        if issued is None or not item.get("encrypted_content"):
            text = (
                f"Item with id '{item['id']}' not found. Items are not persisted when `store` is"
                " set to false."
            )
            raise Refused(404, text, "input")
        if issued["encrypted_content"] != item["encrypted_content"]:
            text = "The encrypted content could not be verified."
            raise Refused(400, text, None, "invalid_encrypted_content")
        following = turn[turn.index(issued) + 1]
        if not after or after[0].get("id") != following["id"]:
            text = (
                f"Item '{item['id']}' of type 'reasoning' was provided without its required"
                " following item."
            )
            raise Refused(400, text, "input")

    def _check_call(self, item: Mapping[str, Any], before: Items) -> None:
        turn, issued = self._found("call_id", item["call_id"])
        if issued is None:
            return  # another server made it
        own = [thought for thought in turn[: turn.index(issued)] if thought["type"] == "reasoning"]
        for thought in own[-1:]:
            if thought["id"] not in [other.get("id") for other in before]:
                text = (
                    f"Item '{issued['id']}' of type 'function_call' was provided without its"
                    f" required 'reasoning' item: '{thought['id']}'."
                )
                raise Refused(400, text, "input")

    def _found(self, name: str, value: str) -> tuple[Items, Mapping[str, Any] | None]:
        for turn in self._issued:
            for item in turn:
                if item.get(name) == value:
                    return turn, item
        return (), None

    # ---- events ----------------------------------------------------------------------

    def _events(self, items: Items) -> list[dict[str, Any]]:
        started = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
        events: list[dict[str, Any]] = [
            {"type": f"response.{name}", "response": started} for name in ("created", "in_progress")
        ]
        for index, item in enumerate(items):
            events += [{**event, "output_index": index} for event in _events_of(item)]
        final = {**started, "status": "completed", "output": list(items), "usage": USAGE}
        final |= {"error": None, "incomplete_details": None}
        events.append(self._end({"type": "response.completed", "response": final}))
        return [{**event, "sequence_number": n} for n, event in enumerate(events)]


def _events_of(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    of_item = {"item_id": item["id"]}
    bare = {"content": [], "summary": [], "arguments": "", "encrypted_content": "gAA"}
    began = {name: bare.get(name, value) for name, value in item.items()}
    events: list[dict[str, Any]] = [
        {"type": "response.output_item.added", "item": {**began, "status": "in_progress"}}
    ]
    match item["type"]:
        case "reasoning":
            for number, part in enumerate(item["summary"]):
                place = {**of_item, "summary_index": number}
                kind = "response.reasoning_summary"
                empty = {**part, "text": ""}
                events.append({"type": f"{kind}_part.added", **place, "part": empty})
                for piece in _pieces(part["text"]):
                    events.append({"type": f"{kind}_text.delta", **place, "delta": piece})
                events.append({"type": f"{kind}_text.done", **place, "text": part["text"]})
                events.append({"type": f"{kind}_part.done", **place, "part": part})
        case "message":
            for number, part in enumerate(item["content"]):
                place = {**of_item, "content_index": number}
                name = "refusal" if part["type"] == "refusal" else "output_text"
                text = part.get("refusal") or part.get("text")
                events.append({"type": "response.content_part.added", **place, "part": part})
                for piece in _pieces(text):
                    events.append({"type": f"response.{name}.delta", **place, "delta": piece})
                events.append({"type": f"response.{name}.done", **place, "text": text})
                events.append({"type": "response.content_part.done", **place, "part": part})
        case "function_call":
            kind = "response.function_call_arguments"
            for piece in _pieces(item["arguments"]):
                events.append({"type": f"{kind}.delta", **of_item, "delta": piece})
            events.append({"type": f"{kind}.done", **of_item, "arguments": item["arguments"]})
    events.append({"type": "response.output_item.done", "item": dict(item)})
    return events


def _pieces(text: str) -> list[str]:
    return [text[start : start + 5] for start in range(0, len(text), 5)]


# ---- a model --------------------------------------------------------------------------

#: Of a run with `counting`, before its answer.
STEPS = 24


def counting(body: Mapping[str, Any], steps: int = STEPS) -> Items:
    """Answer as a model that reasons before each step and sometimes calls two tools."""
    since_asked = 0
    for item in body["input"]:
        if item.get("role") == "user":
            since_asked = 0
        since_asked += item["type"] == "reasoning"
    name = f"{len(body['input'])}_{since_asked}"
    if since_asked >= steps:
        return [reasoning(name, "Done."), message(name, f"{steps} steps.")]
    first = function_call(f"{name}a", "calculator", {"expression": f"{since_asked}+1"})
    second = function_call(f"{name}b", "calculator", {"expression": f"{since_asked}+2"})
    commentary = [message(name, f"Step {since_asked}.", phase="commentary")]
    extra = [*commentary * (since_asked % 2), first, *[second] * (since_asked % 3 == 0)]
    return [reasoning(name, f"Step {since_asked}?"), *extra]
