"""The messages by which vendors refuse a request for an image or a file in it.

There is no code for them: the words are those that users quote in public issues, among them 4778,
5707, 8227, 16173, 19822, 23392 and 39534 of anthropics/claude-code.
"""

import re

_WORDS = re.compile(
    r"image dimensions exceed|image exceeds .{0,20}maximum|could not process (?:image|pdf)"
    r"|too much media|too many images and documents|\d pdf pages may be provided"
    r"|at most \d+ (?:image|video|audio|file)\(s\) may be provided",  # vLLM
    re.IGNORECASE,
)


def is_about_attachments(message: str) -> bool:
    """Return whether the request might be accepted without some of its attachments."""
    return _WORDS.search(message) is not None
