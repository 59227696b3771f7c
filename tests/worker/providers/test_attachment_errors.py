"""The errors by which vendors refuse a request for its images and files."""

import pytest

from arkloop.worker.providers.attachment_errors import is_about_attachments, most_images
from tests.worker.providers.failing_streams import in_stream
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
        "messages.0.content.0.pdf.source.base64.data: The PDF specified was not valid.",
        "messages.0.content.0.pdf.source.base64.data: The PDF specified is password protected.",
        "Unable to download the file. Please verify the URL and try again.",
        "At most 1 image(s) may be provided in one prompt.",
        "litellm.BadRequestError: OpenAIException - You uploaded an unsupported image. Please make"
        " sure your image has of one the following formats: ['png', 'jpeg', 'gif', 'webp']..",
        "Invalid MIME type. Only image types are supported.",
        "Timeout while downloading https://example.com/a.png.",
        "Error while downloading file. Upstream status code: 407.",
        "Failed to download image from IMG_9660.gif. Image size exceeds the limit.",
        "The image data you provided does not represent a valid image. Please check your input and",
        "Invalid image.",
        "Invalid base64 image_url.",
        "Invalid 'input[101].content[1].image_url'. Expected a base64-encoded data URL with an"
        " image MIME type (e.g. 'data:image/png;base64,aW1n'), but got empty base64-encoded bytes.",
        "Invalid file data: 'messages[1].content[0].file.file_data'. Expected a base64-encoded data"
        " URL with an application/pdf MIME type, but got unsupported MIME type 'text/markdown'.",
        "The file type you uploaded is not supported. Please try again with a pdf",
        "messages.208.content.0.tool_result.content.0.image.source.base64.media_type: Input should"
        " be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'",
        "messages.6.content.5.image.source.base64.data: Image does not match the provided media"
        " type image/png",
        "litellm.BadRequestError: BedrockException - The image was specified using the image/jpeg"
        " media type, but the image appears to be a image/png image",
        "The model returned the following errors: The provided image does not match the specified"
        " image format.",
        "Unable to process input image. Please retry or report in https://developers.generativeai",
        "Provided image is not valid.",
        "Unsupported MIME type: application/pdf",
        "Invalid or unsupported file uri: https://example.com/a.jpg",
        "The image you provided requires 41334 patches after processing, exceeding the limit of"
        " 30000. Please resize the image and try again.",
        "request contains 52 images, exceeding the maximum of 50 allowed per request",
        "Too many images in request: 11 images provided, but the model supports a maximum of 10"
        " images.",
        "Exceeded maximum number of images (50) allowed in the request.",
        "<400> InternalError.Algo.InvalidParameter: Failed to download multimodal content",
        "<400> InternalError.Algo.InvalidParameter: The image length and width do not meet the"
        " model restrictions. [height:1 or width:1 must be larger than 10]",
        "litellm.ImageFetchError: Error: Unable to fetch image from URL. Status code: 404, url=x",
    ],
)
def test_a_refusal_for_attachments_is_recognised(message: str) -> None:
    """The words are those that users report."""
    assert is_about_attachments(message)


@pytest.mark.parametrize(
    "message",
    [
        "no",
        "prompt is too long: 207368 tokens > 200000 maximum",
        "Your input image may contain content that is not allowed by our safety system.",
        "messages.1.content.0.tool_result.content: Input should be a valid list",
    ],
)
def test_a_refusal_for_something_else_is_not_about_attachments(message: str) -> None:
    """Other refusals stay what they are."""
    assert not is_about_attachments(message)


@pytest.mark.parametrize(
    ("message", "most"),
    [
        ("request contains 52 images, exceeding the maximum of 50 allowed per request", 50),
        (
            "Too many images in request: 11 images provided, but the model supports a maximum of 10"
            " images.",
            10,
        ),
        ("Too many images in request. Max is 10.", 10),
        ("Too many images provided. This model supports up to 3 images", 3),  # Groq
        ("too many images in the message, max allowed is 16", 16),
        ("Exceeded maximum number of images (50) allowed in the request.", 50),
        ("Image count 5 exceeds limit 4 per request.", 4),
        ("At most 0 image(s) may be provided in one prompt.", 0),
        (
            "The image you provided requires 41334 patches after processing, exceeding the limit of"
            " 30000. Please resize the image and try again.",
            None,
        ),
        (MANY, None),
    ],
)
def test_a_refusal_of_many_images_says_how_many_are_accepted(
    message: str, most: int | None
) -> None:
    """As the answer to the request, or as an error inside the stream."""
    assert most == most_images(message)
    for answer in (
        status("400 Bad Request", message=message),
        in_stream("openai", {"code": "invalid_request_error", "message": message}),
    ):
        found = refusal("openai", answer)

        assert (True, most) == (found.refuses_attachments, found.most_images)


@pytest.mark.parametrize(
    ("line", "error_code", "expected"),
    [
        ("500 Internal Server Error", "convert_request_failed", ("provider.invalid_request", 16)),
        ("500 Internal Server Error", "bad_response_body", ("provider.overloaded", None)),
        ("429 Too Many Requests", "convert_request_failed", ("provider.rate_limited", None)),
    ],
)
def test_new_apis_refusal_of_many_images_is_no_failure_of_the_server(
    line: str, error_code: str, expected: tuple[str, int | None]
) -> None:
    """Its code says so: the status is that of a failure, which stays one with another code."""
    message = "too many images in the message, max allowed is 16 (request id: 20261201)"

    found = refusal("openai", status(line, message=message, error_code=error_code))

    assert expected == (found.code, found.most_images)
    assert (expected[1] is not None) == found.refuses_attachments


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("new_api_error", ("provider.invalid_request", 16)),
        ("api_error", ("provider.overloaded", None)),
    ],
)
def test_new_apis_refusal_of_many_images_has_no_code_on_an_anthropic_route(
    kind: str, expected: tuple[str, int | None]
) -> None:
    """There the type says that the error is new-api's own; its words say which one."""
    message = "too many images in the message, max allowed is 16 (request id: 20261201)"

    found = refusal("anthropic", status("500 Internal Server Error", message=message, kind=kind))

    assert expected == (found.code, found.most_images)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_error_says_that_attachments_are_refused(provider: str) -> None:
    """It is the vendor's answer to this request, and not a failure that may pass."""
    found = refusal(provider, status("400 Bad Request", message=MANY))

    assert ("provider.invalid_request", True) == (found.code, found.refuses_attachments)
    assert not refusal(provider, status("400 Bad Request")).refuses_attachments


@pytest.mark.parametrize(
    "code",
    [
        *("invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url"),
        *("invalid_image_mode", "image_too_large", "image_too_small", "image_parse_error"),
        *("image_file_too_large", "unsupported_image_media_type", "empty_image_file"),
        *("failed_to_download_image", "image_file_not_found"),
    ],
)
def test_openais_codes_for_images_are_recognised(code: str) -> None:
    """As the answer to the request, or as an error inside the stream; the model is not gone."""
    for answer in (
        status("400 Bad Request", error_code=code),
        in_stream("openai", {"code": code, "message": "no"}),
    ):
        found = refusal("openai", answer)

        assert ("provider.invalid_request", False) == (found.code, found.is_gone)
        assert found.refuses_attachments


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_error_inside_the_stream_refuses_attachments(provider: str) -> None:
    """It has the same words there, and no status."""
    found = refusal(provider, in_stream(provider, {"type": "api_error", "message": MANY}))

    assert ("provider.invalid_request", True) == (found.code, found.refuses_attachments)


def test_an_image_against_a_policy_is_not_left_out() -> None:
    """The run fails, instead of answering as if there had been no image."""
    policy = "image_content_policy_violation"

    assert not refusal("openai", status("400 Bad Request", error_code=policy)).refuses_attachments
