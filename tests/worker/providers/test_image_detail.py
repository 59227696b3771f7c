"""The detail in which OpenAI's models see images, as both of its APIs receive it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from arkloop.worker import providers
from arkloop.worker.contract.attachments import Attachment, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    ModelRequest,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import chat_request, responses_request
from tests.worker.providers.fake_vendor import route_to, status, vendor

PNG = Attachment(kind="image", file_id="1", name="a.png", media_type="image/png", data="AAAA")
SEEN = ModelRequest(
    model="m",
    system_prompt="",
    messages=[
        UserMessage("described", (TextPart("Look"), PNG, replace(PNG, url="https://e.com/i"))),
        AssistantMessage("", (ToolCall("call_1", "camera", {}),)),
        ToolMessage("call_1", "camera", "ok", (PNG,)),
    ],
)


def details(body: Any) -> Iterator[Any]:
    """Yield the detail of each image in a request, None where it is left out."""
    match body:
        case {"type": "input_image", "detail": detail}:
            yield detail
        case {"type": "image_url", "image_url": image}:
            yield image.get("detail")
        case dict():
            for value in body.values():
                yield from details(value)
        case list():
            for value in body:
                yield from details(value)


def test_a_deployment_gets_high_detail() -> None:
    """Its name, at Azure the customer's choice, does not say how large its images may get."""
    asked = replace(SEEN, model="our-vision")

    for module in (responses_request, chat_request):
        body = module.body(asked, is_vendor=True)

        assert ["high"] * 3 == list(details(body))


@pytest.mark.parametrize(
    ("model", "in_responses", "in_chat"),
    [
        ("openai/gpt-6-astra", "high", "high"),
        ("openai.gpt-5.6-terra", "high", "high"),
        ("gpt-5.5", "high", "high"),
        ("~openai/gpt-latest", "high", "high"),
        ("openai/gpt-luna-latest", "high", "high"),
        ("openai/chat-latest", "high", "high"),
        ("databricks-gpt-5-5", "high", "high"),
        ("GPT-5.5", "high", "high"),
        ("gpt-oss-120b", "auto", None),
        ("openai/gpt-oss-120b", "auto", None),
        ("minigpt-4", "auto", None),
        ("deepseek-chat-latest", "auto", None),
        ("x-ai/grok-4", "auto", None),
        ("our-vision", "auto", None),
    ],
)
def test_another_server_gets_high_detail_for_a_model_of_openai(
    model: str, in_responses: str, in_chat: str | None
) -> None:
    """A budget holds at a gateway, too; other models may count more tokens for `high`."""
    for api, expected in (("responses", in_responses), ("chat", in_chat)):
        with vendor(status("401 Unauthorized")) as fake:
            provider = providers.load(
                route_to("openai", fake.url, model=model, api=api), faults=False
            )
            with pytest.raises(ProviderError):
                list(provider.stream(replace(SEEN, model=model), StopSignal()))
            provider.close()
            [body] = fake.bodies

        assert [expected] * 3 == list(details(body))
