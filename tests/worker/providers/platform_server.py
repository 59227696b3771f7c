"""The platforms that sell vendors' models, as they check a request and answer it.

Sources:

- Azure OpenAI: `POST {endpoint}/openai/deployments/{deployment}/chat/completions?api-version=…` and
  `POST {endpoint}/openai/responses?api-version=…` with the header `api-key`
  (https://learn.microsoft.com/azure/ai-foundry/openai/reference); the v1 API at
  `{endpoint}/openai/v1/` by OpenAI's own client, without an api-version
  (https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle).
- Bedrock: `POST /model/{modelId}/invoke-with-response-stream`, with `anthropic_version` in the body
  and no model, answered in frames of `application/vnd.amazon.eventstream`; an API key as a bearer,
  or Signature Version 4 (https://docs.aws.amazon.com/bedrock/latest/userguide,
  https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html).
- Vertex AI: `POST …/projects/{project}/locations/{region}/publishers/anthropic/models/{model}:
  streamRawPredict`, with `anthropic_version` in the body and no model, and an access token that
  `token_uri` issues for a claim signed by the service account
  (https://docs.cloud.google.com/vertex-ai/generative-ai/docs/partner-models/claude/use-claude,
  https://developers.google.com/identity/protocols/oauth2/service-account).
- Foundry: Anthropic's own Messages below `{endpoint}/anthropic`, with `x-api-key`
  (https://platform.claude.com/docs/en/build-with-claude/claude-in-microsoft-foundry).
"""

import base64
import hashlib
import hmac
import json
import re
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import jwt

from tests.worker.providers.fake_vendor import anthropic_stream, delta, openai_stream

EVENTS: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {"role": "assistant", "usage": {"input_tokens": 9, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 2},
    },
    {"type": "message_stop"},
]
RESPONSES = (
    b'data: {"type": "response.output_text.delta", "item_id": "m", "delta": "Hi"}\n\n'
    b'data: {"type": "response.completed", "response": {"status": "completed"}}\n\n'
)
KEY = "the-key"
AWS = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG"}


class Refused(Exception):
    pass


class PlatformServer:
    """Answers `Hi` to a request that follows the rules; `refused` has the reasons of the others."""

    def __init__(self, public_key: Any = None) -> None:
        self.refused: list[str] = []
        self.paths: list[str] = []
        self.sent: list[bytes] = []  # bodies of model calls, as they arrived
        self.headers: list[dict[str, str]] = []
        self._public_key = public_key
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.paths.append(self.path)
                server.headers.append(headers)
                try:
                    status, kind, answer = 200, *server._answer(self.path, headers, body)
                except Refused as refused:
                    server.refused.append(str(refused))
                    status, kind, answer = 403, "application/json", b'{"message": "refused"}'
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[str, bytes]:
        where = urlsplit(path).path
        if where == "/token":
            return "application/json", json.dumps(self._token(body)).encode()
        self.sent.append(body)
        sent = json.loads(body)
        if where.startswith("/openai/"):
            _check_azure(path, headers, sent)
            if where.endswith("/responses"):
                return "text/event-stream", RESPONSES
            stream = openai_stream(delta(content="Hi"), delta("stop"))
            return "text/event-stream", stream
        if where.startswith("/model/"):
            _check_bedrock(path, headers, body, sent)
            frames = b"".join(frame({"bytes": _encoded(event)}) for event in EVENTS)
            return "application/vnd.amazon.eventstream", frames
        if where.startswith("/v1/projects/"):
            _check_vertex(where, headers, sent)
        else:
            _check_foundry(where, headers)
        return "text/event-stream", anthropic_stream(*EVENTS, stop=False)

    def _token(self, body: bytes) -> dict[str, Any]:
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        _check(form.get("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer", "grant")
        audience = f"{self.url}/token"
        try:
            claim = jwt.decode(form["assertion"], self._public_key, ["RS256"], audience=audience)
        except jwt.PyJWTError as error:
            raise Refused(f"claim: {error}") from error
        _check(claim["iss"] == "bot@example.iam.gserviceaccount.com", "issuer")
        _check(claim["scope"] == "https://www.googleapis.com/auth/cloud-platform", "scope")
        _check(claim["exp"] - claim["iat"] <= 3600, "lifetime")
        return {"access_token": "ya29.token", "expires_in": 3599, "token_type": "Bearer"}


def _check(is_right: object, what: str) -> None:
    if not is_right:
        raise Refused(what)


def _check_azure(path: str, headers: dict[str, str], sent: dict[str, Any]) -> None:
    parts = urlsplit(path)
    if parts.path.startswith("/openai/v1/"):
        _check(parts.query == "", "api-version of the v1 API")
        _check(headers.get("authorization") == f"Bearer {KEY}", "key")
        return
    _check(parts.query == "api-version=2025-04-01-preview", "api-version")
    _check(headers.get("api-key") == KEY and "authorization" not in headers, "key")
    at_deployment = f"/openai/deployments/{sent['model']}/chat/completions"
    _check(parts.path in (at_deployment, "/openai/responses"), "path")


def _check_bedrock(path: str, headers: dict[str, str], body: bytes, sent: dict[str, Any]) -> None:
    model = re.fullmatch("/model/([^/]+)/invoke-with-response-stream", path)
    _check(model and unquote(model[1]).startswith("us.anthropic.claude-"), "path")
    _check(sent.get("anthropic_version") and not {"model", "stream"} & sent.keys(), "body")
    if headers["authorization"] != f"Bearer {KEY}":
        _check_signature(path, headers, body)


def _check_signature(path: str, headers: dict[str, str], body: bytes) -> None:
    """Compute Signature Version 4 of what has arrived, by the reference."""
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=(\S+), SignedHeaders=(\S+), Signature=(\w+)",
        headers["authorization"],
    )
    _check(found, "form of the signature")
    assert found
    access_key, *scope = found[1].split("/")
    _check(access_key == AWS["aws_access_key_id"], "access key")
    _check(scope[1:] == ["us-east-1", "bedrock", "aws4_request"], "scope")
    signed = found[2].split(";")
    canonical = "\n".join(
        [
            "POST",
            quote(path, safe="/-_.~"),
            "",
            *(f"{name}:{headers[name].strip()}" for name in signed),
            "",
            found[2],
            hashlib.sha256(body).hexdigest(),
        ]
    )
    text = "\n".join(
        [
            "AWS4-HMAC-SHA256",
            headers["x-amz-date"],
            "/".join(scope),
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    key = f"AWS4{AWS['aws_secret_access_key']}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    _check(found[3] == hmac.digest(key, text.encode(), "sha256").hex(), "signature")


def _check_vertex(where: str, headers: dict[str, str], sent: dict[str, Any]) -> None:
    models = "/v1/projects/my-project/locations/europe-west1/publishers/anthropic/models/"
    _check(re.fullmatch(re.escape(models) + r"claude-[^/]+:streamRawPredict", where), "path")
    _check(headers.get("authorization") == "Bearer ya29.token", "token")
    _check(sent.get("anthropic_version") and "model" not in sent, "body")


def _check_foundry(where: str, headers: dict[str, str]) -> None:
    _check(where == "/anthropic/v1/messages", "path")
    _check(headers.get("x-api-key") == KEY and "authorization" not in headers, "key")
    _check("anthropic-version" in headers, "version")


def _encoded(event: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(event).encode()).decode()


def frame(payload: dict[str, Any], kind: str = "event", name: str = "chunk") -> bytes:
    """Build a frame of Amazon's event streams: lengths, headers and payload, with two checksums."""
    label = "exception" if kind == "exception" else "event"
    values = {":message-type": kind, f":{label}-type": name, ":content-type": "application/json"}
    headers = b"".join(
        bytes([len(n)]) + n.encode() + b"\x07" + len(v).to_bytes(2, "big") + v.encode()
        for n, v in values.items()
    )
    body = json.dumps(payload).encode()
    lengths = (len(headers) + len(body) + 16).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    start = lengths + zlib.crc32(lengths).to_bytes(4, "big") + headers + body
    return start + zlib.crc32(start).to_bytes(4, "big")
