"""Answers of MCP servers that are made to cost memory."""

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import JSONRPCNotification

from arkloop.shared.events.plain import clean
from arkloop.shared.ids import new_id
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.bounded_messages import MAX_BYTES, MAX_VALUES, TooLarge, parse, refusal_of
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.server import Server
from tests.waiting import eventually
from tests.worker.mcp.lying_mcp_server import Lying, lying

pytestmark = pytest.mark.processes

MB = 1_000_000
#: What an answer of 4 MiB may cost the sidecar, beyond what it had before.
MOST = 70 * MB
MOST_LEFT = 25 * MB
_WRAPPING = 300
_FILL = MAX_BYTES - _WRAPPING


def _content(values: bytes) -> bytes:
    return b'{"content":[' + values + b"]}"


def _structured(value: bytes) -> bytes:
    return b'{"content":[],"structuredContent":{"a":' + value + b"}}"


def _many(value: bytes, count: int | None = None) -> bytes:
    return b",".join([value] * (count or _FILL // (len(value) + 1)))


_TEXT = b'{"type":"text","text":""}'
_LONG = '"😀'.encode() + b"x" * (_FILL - 100) + b'"'
#: By what they are: the result, and what the call says (None: it succeeds).
HOSTILE = {
    "empty objects": (_structured(b"[" + _many(b"{}") + b"]"), "too large"),
    "nested lists": (_structured(b"[" + _many(b"[[]]") + b"]"), "too large"),
    "empty texts": (_content(_many(_TEXT)), "too large"),
    "parts that are none": (_content(_many(b'{"type":"x"}')), "too large"),
    "as many parts as are read": (_content(_many(b'{"type":0}', MAX_VALUES // 2 - 10)), None),
    "a wide text": (_content(b'{"type":"text","text":' + _LONG + b"}"), None),
    "a wide value": (_structured(_LONG), None),
    "a text of cut characters": (
        _content(b'{"type":"text","text":"' + rb"\ud83d--" * (_FILL // 8 - 10) + b'"}'),
        None,
    ),
    "a wide key": (_structured(b"{" + _LONG + b":1}"), None),
}


@pytest.fixture(scope="module")
def client() -> Iterator[McpClient]:
    made = McpClient(allowed_networks=["127.0.0.0/8"])
    yield made
    made.close()


@pytest.mark.parametrize("as_events", [False, True], ids=["json", "events"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_answer_costs_much_memory(client: McpClient, kind: str, as_events: bool) -> None:
    """A response costs little memory while it is read, and afterwards."""
    result, reason = HOSTILE[kind]

    def answer(handler: Lying) -> None:
        number = str(handler.message["id"]).encode()
        body = b'{"jsonrpc":"2.0","id":' + number + b',"result":' + result + b"}"
        assert len(body) <= MAX_BYTES
        if as_events:
            body = b"data: " + body + b"\n\n"
        kind = "text/event-stream; charset=utf-8" if as_events else "application/json"
        handler.send(200, body, **{"Content-Type": kind})

    with lying(answer) as (url, _):
        server = Server(org_id=new_id(), config_id=new_id(), name="http", url=url)
        [tool] = client.tools(server)
        before = _memory(client, server.org_id, "VmRSS")
        _forget_peak(client, server.org_id)
        began = time.monotonic()
        with nullcontext() if reason is None else pytest.raises(McpFailed, match=reason):
            text = client.call(server, "lie", {}, pinned=tool.hash)
            assert len(text) < 1024 * 1024 + 100
        assert time.monotonic() - began < 30
        assert _memory(client, server.org_id, "VmHWM") - before < MOST
        # The sidecar frees it when it has sent the result, which may be here before.
        eventually(lambda: _memory(client, server.org_id, "VmRSS") - before < MOST_LEFT)


def test_an_error_of_many_values_fails_one_call_alone(client: McpClient) -> None:
    """An error with a status of its own is no exception; its tool may have run, and runs once."""
    calls = 0

    def fail(handler: Lying) -> None:
        nonlocal calls
        calls += 1
        number = str(handler.message["id"]).encode()
        error = b'{"code":1,"message":"m","data":[' + _many(b"[]") + b"]}"
        body = b'{"jsonrpc":"2.0","id":' + number + b',"error":' + error + b"}"
        handler.send(400, body, **{"Content-Type": "application/json"})

    with lying(fail) as (url, _):
        server = Server(org_id=new_id(), config_id=new_id(), name="http", url=url)
        [tool] = client.tools(server)
        sidecar, before = client.sidecar_pid(server.org_id), _memory(client, server.org_id, "VmRSS")
        _forget_peak(client, server.org_id)
        with pytest.raises(McpFailed, match="HTTP status 400"):
            client.call(server, "lie", {}, pinned=tool.hash)
        assert sidecar == client.sidecar_pid(server.org_id)
        assert _memory(client, server.org_id, "VmHWM") - before < MOST
    assert 1 == calls


def _memory(client: McpClient, org_id: UUID, name: str) -> int:
    status = Path(f"/proc/{client.sidecar_pid(org_id)}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def _forget_peak(client: McpClient, org_id: UUID) -> None:
    Path(f"/proc/{client.sidecar_pid(org_id)}/clear_refs").write_text("5")


@pytest.mark.parametrize("as_events", [False, True], ids=["json", "events"])
def test_text_of_any_script_arrives_as_it_is(client: McpClient, as_events: bool) -> None:
    """Text of any script arrives unchanged, in events too, which are UTF-8 whatever their charset
    says.
    """
    said = "Grüße, 你好, 😀\u2028\x85."

    def answer(handler: Lying) -> None:
        result = {"content": [{"type": "text", "text": said}]}
        message = {"jsonrpc": "2.0", "id": handler.message["id"], "result": result}
        body = json.dumps(message, ensure_ascii=False).encode()
        if as_events:
            body = b"data: " + body + b"\n\n"
        kind = "text/event-stream; charset=utf-8" if as_events else "application/json"
        handler.send(200, body, **{"Content-Type": kind})

    with lying(answer) as (url, _):
        server = Server(org_id=new_id(), config_id=new_id(), name="http", url=url)
        [tool] = client.tools(server)
        assert said == client.call(server, "lie", {}, pinned=tool.hash)


def test_a_message_of_too_many_values_is_refused_unparsed() -> None:
    """A message with too many values, or too long, is refused unparsed; the largest allowed one is
    not.
    """

    def message(values: int, text: str) -> bytes:
        # The message, its version and id, the result, the list, and the text.
        params = {"a": [0] * (values - 6), "b": text}
        return json.dumps({"jsonrpc": "2.0", "method": "x", "params": params}).encode()

    parse(message(MAX_VALUES, "[{,"))
    parse(message(MAX_VALUES, "[{," * MAX_VALUES))
    with pytest.raises(TooLarge, match="values"):
        parse(message(MAX_VALUES + 1, ""))
    with pytest.raises(TooLarge, match="bytes"):
        parse(message(10, "x" * MAX_BYTES))


@given(st.lists(st.sampled_from(["\ud83d", "\ude00", "😀", "\\", "ud83d", "ude00", '"', "a"])))
def test_half_a_character_is_replaced(parts: list[str]) -> None:
    """Half a character is replaced; whole ones stay, and so does text that looks like an escape."""
    said = "".join(parts)
    for sent in (json.dumps(said), json.dumps(said).replace("ud", "uD")):
        message = b'{"jsonrpc":"2.0","method":"x","params":{"said":' + sent.encode() + b"}}"
        parsed = parse(message)
        assert isinstance(parsed, JSONRPCNotification)
        assert {"said": clean(json.loads(sent))} == parsed.params


@pytest.mark.parametrize(
    ("line", "refused_id"),
    [
        ('{"jsonrpc": "2.0", "id": 7, "result": [1]}', 7),
        ('{"jsonrpc": "2.0", "id": "a", "error": "\\ud83d"}', "a"),
        ('{"jsonrpc": "2.0", "id": 7, "method": 5}', None),
        ('{"id": 7, "error": "of a log"}', None),
        ('{"jsonrpc": "2.0", "id": 7.5}', None),
        ("Loading…", None),
        ("[" * 10_000, None),
    ],
)
def test_the_request_of_an_invalid_response_is_known(
    line: str, refused_id: str | int | None
) -> None:
    """Requests of a server, and whatever else a program prints, are no responses."""
    data = line.encode()
    with pytest.raises(ValueError):
        parse(data)
    error = refusal_of(data)
    assert refused_id == (error.id if error is not None else None)
