"""The parts of a message."""

import pytest

from arkloop.worker.contract.attachments import Attachment, TextPart, parts_of


def test_stored_parts_are_read() -> None:
    """Files have what was known of them when the message was stored."""
    facts = {"name": "a.png", "media_type": "image/png", "size": 5}
    stored = [
        {"type": "text", "text": "Hi"},
        {"type": "image", "file_id": "1", "file": facts},
        {"type": "file", "url": "https://example.com/a.pdf"},
    ]

    assert (
        TextPart("Hi"),
        Attachment(kind="image", file_id="1", name="a.png", media_type="image/png", size=5),
        Attachment(kind="file", url="https://example.com/a.pdf"),
    ) == parts_of(stored)
    assert () == parts_of(None)


@pytest.mark.parametrize(
    ("attachment", "tokens"),
    [
        (Attachment(kind="image", file_id="1", media_type="image/png", size=5_000_000), 1_600),
        (Attachment(kind="image", url="https://a.b/"), 1_600),
        (Attachment(kind="file", file_id="1", media_type="text/plain", size=3_000), 1_000),
        (Attachment(kind="file", file_id="1", media_type="application/pdf", size=10), 3_000),
        (Attachment(kind="file", file_id="1", media_type="application/pdf", size=300_000), 10_000),
        (Attachment(kind="file", url="https://a.b/"), 10_000),
    ],
)
def test_tokens_are_estimated(attachment: Attachment, tokens: int) -> None:
    """An image has about as many whatever its size; documents have more the longer they are."""
    assert tokens == attachment.tokens


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-6-astra", 5_000),
        ("gpt-4o", 5_000),
        ("gpt-4o-mini-2024-07-18", 50_000),
        ("openai/gpt-4o-mini", 50_000),
        ("databricks-gpt-5-nano", 6_200),
        ("ft:gpt-4.1-mini-2025-04-14:ours", 6_700),
        ("gpt-4.1-nano", 10_100),
        ("openai/gpt-5-nano", 6_200),
        ("o4-mini", 7_100),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 16_400),
        ("qwen/qwen3-vl-235b-a22b-instruct", 16_400),
        ("qwen2.5vl:7b", 16_400),
        ("qwen-vl-max", 16_400),
        ("Qwen/QVQ-72B-Preview", 16_400),
        ("Qwen/Qwen2.5-Omni-7B", 16_400),
        ("accounts/fireworks/models/qwen3p8-max", 16_400),
        ("Qwen/Qwen3.6-27B", 16_400),
        ("Qwen/Qwen3.10-9B", 16_400),
        ("qwen3-5-35b-a3b", 16_400),
        ("qwen4", 16_400),
        ("Qwen/Qwen4-32B", 16_400),
        ("qwen2.5:7b", 5_000),
        ("Qwen/Qwen3-8B", 5_000),
        ("Qwen/Qwen-72B-Chat", 5_000),
        ("deepseek-r1-distill-qwen-32b", 5_000),
    ],
)
def test_models_that_count_images_higher_have_bounds_of_their_own(model: str, tokens: int) -> None:
    """OpenAI's factors are 1.62, 2.46, 1.5 and 1.72 tokens for each of 4,096 patches; Qwen's models
    read images in their full size, with up to 16,384 tokens each.
    """
    image = Attachment(kind="image", file_id="1", media_type="image/png", size=5_000_000)

    assert tokens == image.most_tokens(model)
