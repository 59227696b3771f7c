"""The prompts of a run: the bodies that its vendors' APIs received, as they are stored.

They are in the column `prompts` of the run's events, which thereby store, delete and protect them.
An event has those that were sent before it and after the event before. Each begins with one line of
JSON and continues with compressed bytes: what differs from the body before, since most of a request
is in the next one, too. So a prompt is read with those before it, from its attempt's beginning on.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: What one body, and all prompts of an attempt as they are stored, may have. Of more, only the
#: length is known.
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_ATTEMPT_BYTES = 8 * 1024 * 1024
#: Shorter contents of files stay in a body: they may be the same as other text by chance.
LEAST_FILE_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that was read; `number` counts those of the run from 1, `seq` is that of its event.

    `facts` are those that its worker has stored. `body` is None if it was not stored.
    """

    number: int
    seq: int
    facts: Mapping[str, Any]
    body: bytes | None


class Encoder:
    """The encoder of an attempt's prompts, which knows the body of the last one."""

    def __init__(self) -> None:
        self._last = b""
        self._left = MAX_ATTEMPT_BYTES

    def encode(
        self, facts: Mapping[str, Any], body: bytes, files: Iterable[tuple[str, str]] = ()
    ) -> bytes:
        """Return a prompt as it is stored.

        `files` are ids of files with their content as it is in the body, which their ids replace.
        """
        size = len(body)
        for file_id, content in files:
            if len(content) >= LEAST_FILE_CHARACTERS:
                body = body.replace(content.encode(), b"[content of file %s]" % file_id.encode())
        if len(body) > MAX_BODY_BYTES:
            return _record({**facts, "bytes": size}, b"")
        prefix, suffix = _shared(self._last, body)
        # What is sent waits for this: the lowest level takes a third of the time.
        middle = zlib.compress(body[prefix : len(body) - suffix], 1)
        if len(middle) > self._left:
            return _record({**facts, "bytes": size}, b"")
        self._left -= len(middle)
        record = _record(
            {
                **facts,
                "bytes": size,
                "length": len(middle),
                "base": zlib.crc32(self._last),
                "prefix": prefix,
                "suffix": suffix,
            },
            middle,
        )
        self._last = body
        return record


def read(rows: Iterable[tuple[int, bytes]]) -> Iterator[Prompt]:
    """Yield the prompts of a run from its events, given as pairs of `seq` and the column."""
    last, number = b"", 0
    for seq, stored in rows:
        place = 0
        while place < len(stored):
            end = stored.index(b"\n", place)
            facts = json.loads(stored[place:end])
            place = end + 1 + facts.get("length", 0)
            body: bytes | None = None
            if "length" in facts:
                body = _body(last, facts, stored[end + 1 : place])
                last = last if body is None else body
            number += 1
            yield Prompt(number, seq, facts, body)


def _body(last: bytes, facts: Mapping[str, Any], stored: bytes) -> bytes | None:
    """Return a body; None if the one before it was lost."""
    prefix, suffix = facts["prefix"], facts["suffix"]
    if not prefix + suffix:
        return zlib.decompress(stored)
    if zlib.crc32(last) != facts["base"]:
        return None
    return last[:prefix] + zlib.decompress(stored) + last[len(last) - suffix :]


def _record(facts: Mapping[str, Any], stored: bytes) -> bytes:
    return json.dumps(facts, separators=(",", ":")).encode() + b"\n" + stored


def _shared(before: bytes, body: bytes) -> tuple[int, int]:
    """Return how many bytes are the same at the beginning and, of the others, at the end."""
    most = min(len(before), len(body))
    prefix = _equal(most, lambda low, high: before[low:high] == body[low:high])
    last, end = len(before), len(body)
    suffix = _equal(
        most - prefix,
        lambda low, high: before[last - high : last - low] == body[end - high : end - low],
    )
    return prefix, suffix


def _equal(most: int, is_equal: Any) -> int:
    """Return up to which length two texts are equal: halves of what is left are compared."""
    low = 0
    while low < most:
        middle = (low + most + 1) // 2
        if is_equal(low, middle):
            low = middle
        else:
            most = middle - 1
    return low
