"""The parts of a message: texts, and the images and files that it refers to."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IMAGE, FILE = "image", "file"
#: Estimates of tokens. An image is scaled down to what a vendor's model looks at; of a PDF, the
#: vendors read the text and an image of each page.
IMAGE_TOKENS = 1_600
PDF_BYTES_PER_TOKEN = 30
LEAST_PDF_TOKENS = 3_000
TEXT_BYTES_PER_TOKEN = 3
#: Of a file behind a URL, whose size nobody knows.
URL_FILE_TOKENS = 10_000
#: The most that an attachment can take. Some models count images higher, at a lower price: all but
#: the first have 4,096 patches in an image of 2,048 x 2,048 pixels, times a factor of their own
#: (https://developers.openai.com/api/docs/guides/images-vision#calculating-costs).
MOST_IMAGE_TOKENS = 5_000
MOST_IMAGE_TOKENS_OF = {
    "gpt-4o-mini": 50_000,
    "gpt-4.1-mini": 6_700,
    "gpt-4.1-nano": 10_100,
    "gpt-5-nano": 6_200,
    "o4-mini": 7_100,
}
#: Gateways put names in front, and fine-tuned models have more around: `openai/gpt-4o-mini`.
_MORE_TOKENS = re.compile(rf"(?<![a-z0-9])({'|'.join(map(re.escape, MOST_IMAGE_TOKENS_OF))})")
#: Of Qwen's models with vision: names with `vl`, `omni` or `qvq`, and all from Qwen3.5 on. Their
#: preprocessors, whose default vLLM and SGLang keep, allow 16,384 and two marks: 12,845,056 pixels
#: at 28 x 28 a token, later 16,777,216 at 32 x 32
#: (https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct/discussions/47).
MOST_QWEN_IMAGE_TOKENS = 16_400
_QWEN = re.compile(
    r"qwen[-_]?(3[.p]?[5-9]|3[.p]\d\d|3[-_][5-9](?=[-_:]|$)|[4-9](?!\d*b)|[^/]*(vl|omni)(?![a-z]))|qvq",
    re.IGNORECASE,
)
LEAST_MOST_PDF_TOKENS, MOST_PDF_TOKENS = 10_000, 200_000


@dataclass(frozen=True, slots=True)
class TextPart:
    """A text; with `file_id`, all of it is the content of a text file and a line with its name."""

    text: str
    file_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """An image or a file, stored under `file_id` or found by a vendor at `url`.

    `size` is in bytes. `data` is its content in base64, in requests that are sent alone.
    """

    kind: str  # IMAGE | FILE
    file_id: str | None = None
    url: str | None = None
    name: str = ""
    media_type: str = ""
    size: int = 0
    data: str | None = None

    @classmethod
    def of(cls, part: Mapping[str, Any]) -> "Attachment":
        """Read a stored part of a message."""
        file = part.get("file") or {}
        return cls(kind=part["type"], file_id=part.get("file_id"), url=part.get("url"), **file)

    @property
    def is_text(self) -> bool:
        return self.media_type.startswith("text/")

    @property
    def address(self) -> str:
        """The URL of the content, which is the content itself where it was loaded."""
        return self.url or f"data:{self.media_type};base64,{self.data}"

    @property
    def label(self) -> str:
        """A short description for a person or a model."""
        return f"{self.kind} {self.name or self.url or self.file_id}"

    @property
    def tokens(self) -> int:
        """An estimate of the tokens that it takes."""
        if self.kind == IMAGE:
            return IMAGE_TOKENS
        if self.url is not None:
            return URL_FILE_TOKENS
        if self.is_text:
            return self.size // TEXT_BYTES_PER_TOKEN
        return min(max(self.size // PDF_BYTES_PER_TOKEN, LEAST_PDF_TOKENS), MOST_PDF_TOKENS)

    def most_tokens(self, model: str) -> int:
        """Return a bound of the tokens that it takes with this model."""
        if self.kind == IMAGE:
            if known := _MORE_TOKENS.search(model):
                return MOST_IMAGE_TOKENS_OF[known[1]]
            return MOST_QWEN_IMAGE_TOKENS if _QWEN.search(model) else MOST_IMAGE_TOKENS
        if self.url is not None:
            return MOST_PDF_TOKENS
        if self.is_text:
            return self.size
        return min(max(self.size, LEAST_MOST_PDF_TOKENS), MOST_PDF_TOKENS)


Part = TextPart | Attachment


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """The output of a tool that returns images besides text: PNG, JPEG, GIF or WebP, in base64."""

    text: str
    images: Sequence[str]

    def __post_init__(self) -> None:
        # Here the traceback names the line of the tool; plugins need not be checked by mypy.
        if not isinstance(self.text, str):
            raise TypeError(f"the text of a ToolOutput is {type(self.text).__name__}, not str")
        if isinstance(self.images, str) or not isinstance(self.images, Sequence):
            kind = type(self.images).__name__
            raise TypeError(f"the images of a ToolOutput are {kind}, not a list of str")
        for image in self.images:
            if not isinstance(image, str):
                kind = type(image).__name__
                raise TypeError(
                    f"the images of a ToolOutput include {kind}, not only str in base64"
                )


def parts_of(stored: Iterable[Mapping[str, Any]] | None) -> tuple[Part, ...]:
    """Read the stored parts of a message; none where its content is a text."""
    return tuple(
        TextPart(part["text"]) if part["type"] == "text" else Attachment.of(part)
        for part in stored or ()
    )


def images_of(files: Iterable[Mapping[str, Any]] | None) -> tuple[Attachment, ...]:
    """Read the files of a tool's result, all of which are images."""
    return tuple(Attachment(kind=IMAGE, **file) for file in files or ())
