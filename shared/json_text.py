"""JSON that means one thing only (RFC 8259, I-JSON of RFC 7493): the rest is refused by name.

Python's own reader takes the last of two equal keys, NaN, and integers of any
length; Postgres takes no NUL and no lone surrogate.
"""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

#: Lists and objects within each other, of what people and models send; Python cannot encode all
#: that it can decode.
MAX_DEPTH = 64
MAX_INTEGER = 2**63 - 1
#: Digits of an integer where it may have more than 64 bits; Python itself reads up to 4,300.
MAX_DIGITS = 1_000
#: Values in one text, members and items alike. Each becomes a Python object, of up to 100 bytes
#: for two bytes of text: a body is limited by their number, not only by its length.
MAX_VALUES = 10_000
#: Problems reported for one text, and characters of each field's name in them.
MAX_PROBLEMS = 50
MAX_NAME_LENGTH = 100

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class InvalidJSON(ValueError):
    """`problems` says what is wrong: dotted field → why; the whole text is `body`."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in problems.items()))
        self.problems = problems


class NotJSON(InvalidJSON):
    """The text is not JSON at all; the only problem is that of `body`."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """Stands for a value until the walk knows where it is."""

    why: str


@dataclass(slots=True)
class _Reader:
    max_depth: int
    takes_long_integers: bool
    suspicious: bool = False
    problems: dict[str, str] = field(default_factory=dict)

    def refuse(self, why: str) -> _Refused:
        self.suspicious = True
        return _Refused(why)

    def integer(self, digits: str) -> int | _Refused:
        # By length first: Python needs quadratic time for a number of many digits.
        if len(digits) <= 20 and -MAX_INTEGER - 1 <= (value := int(digits)) <= MAX_INTEGER:
            return value
        if not self.takes_long_integers:
            return self.refuse("does not fit in 64 bits")
        if len(digits) > MAX_DIGITS:
            return self.refuse(f"has more than {MAX_DIGITS:,} digits")
        return int(digits)

    def number(self, text: str) -> float | _Refused:
        value = float(text)
        return value if math.isfinite(value) else self.refuse("is too large a number")

    def constant(self, name: str) -> _Refused:
        return self.refuse(f"{name} is not valid JSON")

    def members(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    members[name] = self.refuse("duplicate field")
                seen.add(name)
        return members

    def walk(self, value: Any, path: list[str | int]) -> None:
        """Collect the problems of `value`, which is at `path`; the path is only read for those."""
        if len(self.problems) >= MAX_PROBLEMS:
            return
        match value:
            case _Refused():
                self.report(path, value.why)
            case str() if _UNSTORABLE.search(value):
                self.report(path, "contains a NUL character or a lone surrogate")
            case dict() | list() if len(path) == self.max_depth:
                self.report(path[:1], f"is nested deeper than {self.max_depth} levels")
            case dict() | list():
                for name, item in value.items() if isinstance(value, dict) else enumerate(value):
                    path.append(name)
                    if isinstance(name, str) and _UNSTORABLE.search(name):
                        self.report(path, "contains a name that cannot be stored")
                    self.walk(item, path)
                    path.pop()

    def report(self, path: list[str | int], why: str) -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            return
        names = (str(name)[:MAX_NAME_LENGTH] for name in path)
        name = _UNSTORABLE.sub("\ufffd", ".".join(names))[:MAX_NAME_LENGTH]
        self.problems[name or "body"] = why


def loads(
    data: bytes,
    *,
    max_depth: int = MAX_DEPTH,
    max_values: int | None = MAX_VALUES,
    takes_long_integers: bool = False,
) -> Any:
    """Read one JSON text in UTF-8.

    Integers have at most 64 bits, with `takes_long_integers` at most 1,000 digits; `max_values`
    None is no limit.

    Raises:
        NotJSON: bad UTF-8 or syntax, a byte order mark.
        InvalidJSON: a key given twice, NaN or Infinity, a number that does not fit, nesting
            deeper than `max_depth`, more than `max_values` values, a NUL or a lone surrogate in
            any string.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJSON({"body": f"is not UTF-8: byte {error.start}"}) from None
    if max_values is not None and has_more_values(data, max_values):
        raise InvalidJSON({"body": f"contains more than {max_values:,} values"})
    reader = _Reader(max_depth, takes_long_integers)
    try:
        value = json.loads(
            text,
            parse_int=reader.integer,
            parse_float=reader.number,
            parse_constant=reader.constant,
            object_pairs_hook=reader.members,
        )
    except RecursionError:
        raise InvalidJSON({"body": f"is nested deeper than {max_depth} levels"}) from None
    except json.JSONDecodeError as error:
        why = f"is not valid JSON: {error.msg}: line {error.lineno} column {error.colno}"
        raise NotJSON({"body": why}) from None
    # Most bodies cannot hold any of it and are spared the walk: without an escape a
    # string is clean, since neither raw NUL nor raw surrogates have got this far.
    if reader.suspicious or "\\u" in text or text.count("[") + text.count("{") > max_depth:
        reader.walk(value, [])
        if reader.problems:
            raise InvalidJSON(reader.problems)
    return value


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
