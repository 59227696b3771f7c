"""The prompts of a run: the bodies that its vendors' APIs received, as they are stored.

They are in the column `prompts` of the run's events, which thereby store, delete and protect them.
An event has those that were sent before it and after the event before. Each begins with one line of
JSON and continues with compressed bytes: what differs from the body before, since most of a request
is in the next one, too. So a body is put together from those before it, from the last one that was
stored whole on; which of them it needs is known from the lines of JSON.
"""

import json
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from arkloop.shared.native_threads import NativeThreads

#: What one body, and all prompts of a run as they are stored, may have. Of more, only the length is
#: known.
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_RUN_BYTES = 8 * 1024 * 1024
#: A body is stored whole again when the differences since the last one that was have this length:
#: who reads it decompresses no more than that.
MAX_CHAIN_BYTES = 32 * 1024 * 1024
#: Shorter contents stay in a body: they may be the same as other text by chance. No image or PDF
#: is that short, nor is a text file with the line that names it.
LEAST_FILE_CHARACTERS = 20
#: Longer differences are compressed in a native thread: it takes about 20 ms for each MB.
LEAST_THREAD_BYTES = 256 * 1024
#: Facts of a body that is stored: its place in the column, and how it is put together.
_NUMBERS = ("length", "size", "sum", "base", "prefix", "suffix")

_THREADS = NativeThreads(2)


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt that was read; `number` counts those of the run from 1, `seq` is that of its event.

    `facts` are those that its worker has stored.
    """

    number: int
    seq: int
    facts: Mapping[str, Any]
    #: The compressed difference; None if the body was not stored, or one that it is based on lost.
    _stored: memoryview | None
    _before: "Prompt | None"

    @property
    def is_stored(self) -> bool:
        return self._stored is not None

    def body(self) -> bytes | None:
        """Decode the body; None if it is not stored or damaged.

        Only what is part of it is decompressed, and others get on meanwhile.
        """
        if self._stored is None:
            return None
        whole = bytearray(self.facts["size"])
        one: Prompt | None = self
        # The parts that are missing: where they are in `whole`, and from where to where in `one`.
        missing = [(0, 0, len(whole))]
        while one is not None and missing:
            try:
                missing = one._fill(whole, missing)
            except zlib.error:
                return None
            one = one._before
            time.sleep(0)
        return bytes(whole) if zlib.crc32(whole) == self.facts["sum"] else None

    def _fill(
        self, whole: bytearray, missing: list[tuple[int, int, int]]
    ) -> list[tuple[int, int, int]]:
        """Copy what is in the difference; return what is in the body before."""
        prefix, end = self.facts["prefix"], self.facts["size"] - self.facts["suffix"]
        longer = self.facts["size"] - (self._before.facts["size"] if self._before else 0)
        middle = b""
        left = []
        for place, low, high in missing:
            if low < prefix:
                left.append((place, low, min(high, prefix)))
            start, stop = max(low, prefix), min(high, end)
            if start < stop:
                if not middle and self._stored is not None:
                    middle = zlib.decompressobj().decompress(self._stored, end - prefix)
                at = place + start - low
                whole[at : at + stop - start] = middle[start - prefix : stop - prefix]
            if high > end:
                start = max(low, end)
                left.append((place + start - low, start - longer, high - longer))
        return left


class FileContent(NamedTuple):
    """The content of a file: the base64 of it, or a text, whose JSON is in the body."""

    file_id: str
    content: str
    is_text: bool = False


class Encoder:
    """The encoder of an attempt's prompts, which knows the body of the last one."""

    def __init__(self) -> None:
        self._last = b""
        self._sum = 0  # of the last body
        self._left = MAX_RUN_BYTES
        self._chain = 0  # the length of the differences since a body was stored whole

    def count(self, stored: int) -> None:
        """Count the bytes that earlier attempts of the run have stored."""
        self._left -= stored

    def encode(
        self, facts: Mapping[str, Any], body: bytes, files: Iterable[FileContent] = ()
    ) -> bytes:
        """Return a prompt as it is stored.

        The ids of the `files` replace their content; they are in the body's order, each as often as
        it is there. A long body takes its time, in which other greenlets run.
        """
        size = len(body)
        body = _without(body, files)
        if len(body) > MAX_BODY_BYTES:
            return _record({**facts, "bytes": size}, b"")
        prefix, suffix = _shared(self._last, body)
        if self._chain + len(body) - prefix - suffix > MAX_CHAIN_BYTES:
            prefix = suffix = 0
        middle = _compressed(body[prefix : len(body) - suffix])
        if len(middle) > self._left:
            return _record({**facts, "bytes": size}, b"")
        self._left -= len(middle)
        whole = {"size": len(body), "sum": zlib.crc32(body)}
        based = {"base": self._sum, "prefix": prefix, "suffix": suffix}
        chain = self._chain if prefix + suffix else 0
        self._chain = chain + len(body) - prefix - suffix
        self._last, self._sum = body, whole["sum"]
        return _record({**facts, "bytes": size, "length": len(middle), **whole, **based}, middle)


def read(rows: Iterable[tuple[int, bytes]]) -> Iterator[Prompt]:
    """Yield the prompts of a run from its events, given as pairs of `seq` and the column.

    No body is decoded for it. What follows a damaged line of JSON in its event is left out.
    """
    last: Prompt | None = None
    number = 0
    for seq, stored in rows:
        place = 0
        while place < len(stored):
            try:
                end = stored.index(b"\n", place)
                facts = json.loads(stored[place:end])
            except (ValueError, RecursionError):
                break
            if not _can_be_read(facts):
                break
            place = end + 1 + facts.get("length", 0)
            number += 1
            is_whole = not facts.get("prefix", 0) + facts.get("suffix", 0)
            before = None if is_whole else last
            # Otherwise the body between them was lost.
            is_based = is_whole or (last is not None and last.facts["sum"] == facts["base"])
            is_stored = "sum" in facts and is_based
            difference = memoryview(stored)[end + 1 : place] if is_stored else None
            prompt = Prompt(number, seq, facts, difference, before)
            last = prompt if prompt.is_stored else last
            yield prompt


def _can_be_read(facts: Any) -> bool:
    """Return whether all numbers by which a body is put together are there, if it is stored."""
    if not isinstance(facts, dict):
        return False
    found = [facts[name] for name in _NUMBERS if name in facts]
    if any(type(number) is not int or not 0 <= number < 1 << 32 for number in found):
        return False
    return "sum" not in facts or (
        len(found) == len(_NUMBERS)
        and facts["prefix"] + facts["suffix"] <= facts["size"] <= MAX_BODY_BYTES
    )


def _without(body: bytes, files: Iterable[FileContent]) -> bytes:
    """Return the body with the ids of files for their content, in one pass."""
    parts: list[bytes] = []
    at = 0
    is_ascii = body.isascii()
    for file_id, content, is_text in files:
        if len(content) < LEAST_FILE_CHARACTERS:
            continue
        # Clients that escape more than JSON requires send nothing but ASCII.
        escaped = json.dumps(content, ensure_ascii=is_ascii)[1:-1] if is_text else content
        wanted = escaped.encode()
        # To look for all of it prepares a table of it, where the first place is nearly always it.
        found = body.find(wanted[:64], at)
        if found >= 0 and not body.startswith(wanted, found):
            found = body.find(wanted, found + 1)
        if found >= 0:
            parts += (body[at:found], b"[content of file %s]" % file_id.encode())
            at = found + len(wanted)
    return b"".join((*parts, body[at:])) if parts else body


def _compressed(difference: bytes) -> bytes:
    # What is sent waits for this: the lowest level takes a third of the time.
    if len(difference) < LEAST_THREAD_BYTES:
        return zlib.compress(difference, 1)
    return _THREADS.call(zlib.compress, difference, 1)


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
