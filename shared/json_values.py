"""The number of values in a JSON text, which decides what parsing it costs."""


def has_more_values(data: bytes, most: int) -> bool:
    """Return whether a JSON text has more than `most` values, without building any of them.

    Members and items count alike. Every value but the outermost follows a comma or an opening
    bracket outside of strings. Of a text that is not JSON nothing is promised.
    """
    if _separators(data) < most:
        return False
    # Without escaped quotes, every second piece between quotes is outside of strings, of which
    # a value has two at most: its name and itself.
    pieces = data.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"', 4 * most)
    return len(pieces) > 4 * most or sum(map(_separators, pieces[::2])) >= most


def _separators(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")
