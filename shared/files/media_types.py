"""The media types of files, detected from their bytes: what a client declares is not believed.

Six signatures, each at the very beginning, and text that is valid UTF-8. Libraries for this know
hundreds of formats, and guess where two share a beginning; none of them checks UTF-8.
"""

import codecs

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
PDF = "application/pdf"
TEXT = "text/plain"
ACCEPTED = "must be a PNG, JPEG, GIF or WebP image, a PDF, or text in UTF-8"
#: The length of the longest signature.
HEAD_BYTES = 12


def of_head(head: bytes) -> str | None:
    """Detect an image or a PDF by the first `HEAD_BYTES` of a file; None for everything else."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return PDF if head.startswith(b"%PDF-") else None


class TextCheck:
    """A check of text that comes in pieces: valid UTF-8, and no NUL."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.is_text = True

    def add(self, piece: bytes, *, is_last: bool = False) -> None:
        if not self.is_text:
            return
        try:
            self._decoder.decode(piece, is_last)
        except UnicodeDecodeError:
            self.is_text = False
        self.is_text = self.is_text and b"\0" not in piece
