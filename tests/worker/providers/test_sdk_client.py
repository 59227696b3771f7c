"""The common parts of both SDKs' clients."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.catalog.model_routes import Route
from arkloop.worker import providers
from arkloop.worker.contract.messages import ModelRequest, UserMessage
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.sdk_client import json_bytes

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(value=JSON)
def test_json_is_encoded_as_the_sdks_do(value: Any) -> None:
    """Byte for byte, so that vendors' caches of prompts keep working."""
    expected = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    assert expected.encode() == json_bytes(value)


@pytest.mark.parametrize(
    ("provider", "fields"),
    [("openai", {"api": "chat"}), ("openai", {"api": "responses"}), ("anthropic", {})],
)
def test_an_emoji_does_not_multiply_the_memory_of_a_request(
    provider: str, fields: dict[str, Any]
) -> None:
    """A long conversation is encoded without a string of all of it, of four bytes a character."""
    messages = [UserMessage("word " * 2000 + str(number)) for number in range(800)]
    messages[0] = UserMessage("\N{GRINNING FACE}")
    size = sum(len(message.content) for message in messages)
    route = Route(
        id="r",
        provider=provider,
        model="m",
        base_url=f"http://127.0.0.1:{free_port()}/v1",
        api_key="k",
        **fields,
    )
    client = providers.load(route, faults=False, egress=None)
    request = ModelRequest(model="m", system_prompt="", messages=messages, max_output_tokens=10)
    tracemalloc.start()
    with pytest.raises(ProviderError, match="onnect"):
        list(client.stream(request, StopSignal()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    client.close()

    assert peak < 4 * size
