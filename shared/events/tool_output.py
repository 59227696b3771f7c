"""The part of a tool's output that its event has room for."""

from arkloop.shared.events.plain import clean

MAX_OUTPUT_BYTES = 65_536
#: Of a longer output, the part that is its end.
TAIL_BYTES = 16_384
#: Of a longer output, what `read_result` can return.
MAX_KEPT_CHARACTERS = 8 * 1024 * 1024


def cut(output: str) -> tuple[str, int | None]:
    """Cut the middle out of an output of more than 64 KiB of UTF-8, and leave a mark there.

    Returns the text, and the number of characters of all of it if it was cut.
    """
    # Cut by characters first: cleaning and encoding 100 MB would stop the whole process.
    encoded = clean(output[: MAX_OUTPUT_BYTES + 1]).encode()
    if len(encoded) <= MAX_OUTPUT_BYTES:
        return encoded.decode(), None
    mark = f"\n[truncated: the output had {len(output)} characters]\n"
    tail = clean(output[-TAIL_BYTES:]).encode()[-TAIL_BYTES:].decode(errors="ignore")
    head = encoded[: MAX_OUTPUT_BYTES - TAIL_BYTES - len(mark)].decode(errors="ignore")
    return head + mark + tail, len(output)


def kept(output: str, characters: int | None) -> str | None:
    """Return the text to keep beside the event of a cut output; None if the event has all of it."""
    return clean(output[:MAX_KEPT_CHARACTERS]) if characters else None
