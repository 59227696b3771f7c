"""The errors by which vendors refuse a request for an image or a file in it.

OpenAI has codes for images, such as `invalid_image_format` and `failed_to_download_image`. Others
have none, and LiteLLM replaces them by the status: the words are those that users quote in public
issues, among them 4778, 5707, 8227, 16173, 19822, 23392 and 39534 of anthropics/claude-code. Those
of OpenAI: 11527 of langgenius/dify, 1273 of Future-House/paper-qa, 8857 of vercel/ai, 95 of
riverscuomo/cuomputer, 20923 and 23983 of anomalyco/opencode, 36 of sashirestela/simple-openai, 75
of sipherxyz/comfyui-art-venture, 4445 of pydantic/pydantic-ai, 1560 of openai/openai-node, 194 of
Prism-Shadow/agenthub. Of Azure: 39677 of anomalyco/opencode. Of Anthropic and Bedrock: 3073, 6300
and 15746 of anthropics/claude-code, 4415 of boto/boto3, 382 of ziatdinovmax/SciLink. Of Gemini:
5064 of google-gemini/gemini-cli, 64 of AmberSahdev/Open-Interface, 182 of
google-gemini/deprecated-generative-ai-js, 1548 of BoundaryML/baml. Of Qwen: 6307 of
BerriAI/litellm, 2505 of QwenLM/qwen-code. Of LiteLLM: 5763 of BerriAI/litellm. Of other servers:
48647 of anomalyco/opencode (Meta), 306919 of microsoft/vscode, 874 of the-open-agent/openagent,
1233 of QuantumNous/new-api, 50 of AgnesAI-Labs/AgnesCode.
"""

import re
from typing import Any

_WORDS = re.compile(
    r"image dimensions exceed|image exceeds .{0,20}maximum|could not process (?:image|pdf)"
    r"|pdf specified (?:was not valid|is password protected)|unable to download the file"
    r"|too much media|\d pdf pages may be provided"
    r"|at most \d+ (?:image|video|audio|file)\(s\) may be provided"  # vLLM
    # Anthropic: the place of any error in an attachment; Bedrock
    r"|\.(?:image|document)\.source\.|the image was specified using|image does not match"
    # Gemini
    r"|unable to process input image|provided image is not valid|unsupported mime type"
    r"|invalid or unsupported file uri"
    r"|failed to download multimodal content|the image length and width do not meet"  # Qwen
    r"|unable to fetch image from url"  # LiteLLM, which loads them for some vendors
    # OpenAI
    r"|you uploaded an unsupported image|only image types are supported|file type you uploaded is"
    r"|(?:timeout|error) while downloading|failed to download image|represent a valid image"
    r"|invalid (?:base64 image_url|image(?:\.| url| data)|file data)"
    r"|expected a base64-encoded data url with an (?:image|application/pdf)"
    r"|\d+ patches after processing|exceeded maximum number of images"
    # Other servers, and the first at Anthropic, too
    r"|too many images\b|contains \d+ images, exceeding|image count \d+ exceeds",
    re.IGNORECASE,
)
_MOST_IMAGES = re.compile(
    r"at most (\d+) image\(s\)|\bimage(?: count|s)\b.{0,60}?(?:max\w*|limit|up to|\()[a-z ]*(\d+)",
    re.IGNORECASE,
)
#: The code of new-api, with HTTP 500, for a request that it cannot convert to its vendor's. In
#: Anthropic's shape its errors have no code, and this type.
_NOT_CONVERTED = ("convert_request_failed", "new_api_error")


def is_about_attachments(
    message: str, code: Any = None, status: int = 400, kind: Any = None
) -> bool:
    """Return whether the request might be accepted without some of its attachments.

    Neither a rate limit nor a failing server refuses any. A policy that an image violates is none
    of these: the model should not answer without it as if nothing had been refused.
    """
    if status == 429 or (status >= 500 and (code or kind) not in _NOT_CONVERTED):
        return False
    if _WORDS.search(message):
        return True
    return isinstance(code, str) and "image" in code and "policy" not in code


def most_images(message: str) -> int | None:
    """Return how many images a refusal of too many accepts; None if it does not say that."""
    found = _MOST_IMAGES.search(message)
    return found and int(found[1] or found[2])
