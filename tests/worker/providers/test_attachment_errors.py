"""The messages by which vendors refuse a request for its images and files."""

import pytest

from arkloop.worker.providers.attachment_errors import is_about_attachments
from tests.worker.providers.fake_vendor import refusal, status

MANY = (
    "messages.41.content.31.image.source.base64.data: At least one of the image dimensions exceed"
    " max allowed size for many-image requests: 2000 pixels"
)


@pytest.mark.parametrize(
    "message",
    [
        MANY,
        "messages.7.content.2.image.source.base64.data: At least one of the image dimensions exceed"
        " max allowed size: 8000 pixels",
        "messages.8.content.0.image.source.base64: image exceeds 5 MB maximum: 17699328 bytes >"
        " 5242880 bytes",
        "Too much media: 0 document pages + 102 images > 100",
        "too many images and documents: 104 + 1 > 100",
        "messages.38.content.0.pdf.source.base64.data: A maximum of 100 PDF pages may be provided.",
        "Could not process image",
        "At most 1 image(s) may be provided in one prompt.",
    ],
)
def test_a_refusal_for_attachments_is_recognised(message: str) -> None:
    """The words are those that users report."""
    assert is_about_attachments(message)


@pytest.mark.parametrize("message", ["no", "prompt is too long: 207368 tokens > 200000 maximum"])
def test_a_refusal_for_something_else_is_not_about_attachments(message: str) -> None:
    """Other refusals stay what they are."""
    assert not is_about_attachments(message)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_error_says_that_attachments_are_refused(provider: str) -> None:
    """It is the vendor's answer to this request, and not a failure that may pass."""
    found = refusal(provider, status("400 Bad Request", message=MANY))

    assert ("provider.invalid_request", True) == (found.code, found.refuses_attachments)
    assert not refusal(provider, status("400 Bad Request")).refuses_attachments
