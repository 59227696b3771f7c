"""The provider that `docs/reference/providers.md` shows is a whole one: it is used as it stands."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arkloop.shared import plugins
from arkloop.shared.events.usage import Usage
from arkloop.shared.security.egress import Policy
from arkloop.worker import providers
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Chunk,
    ModelRequest,
    TextDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
)
from arkloop.worker.contract.outcomes import CancelRequested, ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.tools import load
from tests.worker.providers.fake_vendor import REQUEST, Answer, head, route_to, status, vendor

PAGE = Path(__file__).parents[3] / "docs/reference/providers.md"


@pytest.fixture(autouse=True)
def example(tmp_path: Path) -> Iterator[None]:
    """The one file of a plugin is all there is to do."""
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "providers").mkdir()
    (tmp_path / "providers" / "ollama.py").write_text(code)
    plugins.use([str(tmp_path)])
    yield
    plugins.use(())


COUNTS = {"prompt_eval_count": 26, "eval_count": 3}


def lines(*pieces: str, done: bool = True, counts: dict[str, int] = COUNTS) -> Answer:
    """Build a response of Ollama's."""

    def answer(client: socket.socket) -> None:
        said: list[dict[str, Any]] = []
        said += [{"message": {"content": piece}, "done": False} for piece in pieces]
        end = {"done": True, "done_reason": "stop", **counts}
        if done:
            said.append({"message": {"content": ""}, **end})
        client.sendall(head("200 OK", "application/x-ndjson"))
        client.sendall("".join(json.dumps(line) + "\n" for line in said).encode())

    return answer


def call(
    url: str,
    stop: StopSignal | None = None,
    *,
    is_of_org: bool = False,
    request: ModelRequest = REQUEST,
) -> list[Chunk]:
    route = route_to("ollama", url, is_of_org=is_of_org)
    loaded = providers.load(route, faults=False, egress=Policy())
    try:
        return list(loaded.stream(request, stop or StopSignal()))
    finally:
        loaded.close()


def test_it_streams_and_reports_its_usage() -> None:
    """The vendor gets the conversation, the run gets text, reason and tokens."""
    with vendor(lines("Hel", "lo")) as fake:
        chunks = call(fake.url)
        [body] = fake.bodies

    usage = Usage(input_tokens=26, output_tokens=3)
    assert [TextDelta("Hel"), TextDelta("lo"), TurnEnd("stop", (), usage)] == chunks
    assert ["system", "user"] == [message["role"] for message in body["messages"]]


def test_it_translates_settings() -> None:
    """Settings that it names, and the limit of the output, are Ollama's options."""
    settings = {"temperature": 0.5, "stop": ["END"]}
    with vendor(lines("x")) as fake:
        call(fake.url, request=replace(REQUEST, settings=settings, max_output_tokens=9))
        [body] = fake.bodies

    assert {**settings, "num_predict": 9} == body["options"]
    assert settings.keys() <= providers.load(route_to("ollama", "http://x"), faults=False).settings


def test_it_calls_tools_and_tells_their_results() -> None:
    """Calls and results have Ollama's form: whole calls without an id, results that name their
    tool.
    """
    use = {"function": {"name": "calculator", "arguments": {"expression": "1+1"}}}

    def answer(client: socket.socket) -> None:
        said = [
            {"message": {"content": "", "tool_calls": [use]}, "done": False},
            {"message": {"content": ""}, "done": True, "done_reason": "stop", **COUNTS},
        ]
        client.sendall(head("200 OK", "application/x-ndjson"))
        client.sendall("".join(json.dumps(line) + "\n" for line in said).encode())

    made = ToolCall("call_1_1", "calculator", {"expression": "1+1"})
    tools = [tool.spec for tool in load(["calculator"]).values()]
    asked = replace(REQUEST, tools=tools)
    told = [
        UserMessage("1+1?"),
        AssistantMessage("", (made,)),
        ToolMessage(made.id, made.name, "2"),
    ]
    with vendor(answer, lines("2")) as fake:
        [end] = call(fake.url, request=asked)
        call(fake.url, request=replace(asked, messages=told, turn=1))
        first, second = fake.bodies

    assert TurnEnd("tool_calls", (made,), Usage(input_tokens=26, output_tokens=3)) == end
    [sent] = first["tools"]
    assert ("calculator", ["expression"]) == (
        sent["function"]["name"],
        sent["function"]["parameters"]["required"],
    )
    _, _, assistant, result = second["messages"]
    assert [use | {"type": "function"}] == assistant["tool_calls"]
    assert {"role": "tool", "tool_name": "calculator", "content": "2"} == result


@pytest.mark.parametrize("counts", [{}, {"eval_count": 3}])
def test_what_it_did_not_count_is_estimated(counts: dict[str, int]) -> None:
    """The usage of a cached prompt, which Ollama does not report, is estimated."""
    with vendor(lines("Hi", counts=counts)) as fake:
        assert [TextDelta("Hi"), TurnEnd("stop", (), None)] == call(fake.url)


def test_a_route_without_an_address_says_so() -> None:
    """A route without an address fails with a message, without a request."""
    with pytest.raises(ProviderError, match="needs a `base_url`"):
        providers.load(route_to("ollama", None), faults=False)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (status("429 Too Many Requests", "Retry-After: 3"), "rate_limited"),
        (status("500 Internal Server Error"), "overloaded"),
        (lines("Hel", done=False), "connection"),
        (lambda client: None, "connection"),
        (lambda client: client.sendall(head("200 OK", "x") + b"{broken\n"), "malformed"),
        (lambda client: client.sendall(head("200 OK", "x") + b'{"a": 1}\n'), "malformed"),
    ],
)
def test_its_failures_have_their_kinds(answer: Answer, code: str) -> None:
    """Failures get their kinds, with the vendor's retry time."""
    with vendor(answer) as fake, pytest.raises(ProviderError) as caught:
        call(fake.url)

    assert f"provider.{code}" == caught.value.code
    assert (3.0 if code == "rate_limited" else None) == caught.value.retry_after


def test_it_is_cancelled_while_nothing_comes() -> None:
    """A cancel closes the connection while the provider is silent."""
    stop = StopSignal()

    def fall_silent(client: socket.socket) -> None:
        threading.Thread(target=stop.set, args=(CancelRequested(),)).start()
        client.recv(1)

    with vendor(fall_silent) as fake, pytest.raises(CancelRequested):
        call(fake.url, stop)


def test_it_keeps_to_the_addresses_that_an_org_may_reach() -> None:
    """The client sees to that."""
    with vendor(lines("Hi")) as fake, pytest.raises(ProviderError, match="address is not allowed"):
        call(fake.url, is_of_org=True)


def test_a_provider_that_nobody_wrote_is_an_error_of_the_run() -> None:
    """A provider that does not exist, or whose name leads out of the folder, fails the run; a
    faulty one is an internal error.
    """
    providers.load(route_to("ollama", "http://127.0.0.1:1"), faults=False).close()
    for name in ("nobody", "no.body", "..nobody"):
        with pytest.raises(ProviderError, match="Unknown provider"):
            providers.load(route_to(name, None), faults=False)
