"""JSON that means one thing only (RFC 8259, I-JSON of RFC 7493): the rest is refused by name.

Python's own reader takes the last of two equal keys, NaN, and integers of any
length; Postgres takes no NUL and no lone surrogate.
"""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from shared.events.types import MAX_DEPTH
from shared.json_values import has_more_values

MAX_INTEGER = 2**63 - 1
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


@dataclass(frozen=True, slots=True)
class _Refused:
    """Stands for a value until the walk knows where it is."""

    why: str


@dataclass(slots=True)
class _Reader:
    suspicious: bool = False
    problems: dict[str, str] = field(default_factory=dict)

    def refuse(self, why: str) -> _Refused:
        self.suspicious = True
        return _Refused(why)

    def integer(self, digits: str) -> int | _Refused:
        # By length first: Python needs quadratic time for a number of many digits.
        if len(digits) <= 20 and -MAX_INTEGER - 1 <= (value := int(digits)) <= MAX_INTEGER:
            return value
        return self.refuse("does not fit in 64 bits")

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
            case dict() | list() if len(path) == MAX_DEPTH:
                self.report(path[:1], f"is nested deeper than {MAX_DEPTH} levels")
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


def loads(data: bytes) -> Any:
    """Read one JSON text in UTF-8.

    Raises:
        InvalidJSON: bad UTF-8 or syntax, a byte order mark, a key given twice, NaN or
            Infinity, a number that does not fit, nesting deeper than 64, more than
            10,000 values, a NUL or a lone surrogate in any string.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJSON({"body": f"is not UTF-8: byte {error.start}"}) from None
    if has_more_values(data, MAX_VALUES):
        raise InvalidJSON({"body": f"contains more than {MAX_VALUES:,} values"})
    reader = _Reader()
    try:
        value = json.loads(
            text,
            parse_int=reader.integer,
            parse_float=reader.number,
            parse_constant=reader.constant,
            object_pairs_hook=reader.members,
        )
    except RecursionError:
        raise InvalidJSON({"body": f"is nested deeper than {MAX_DEPTH} levels"}) from None
    except json.JSONDecodeError as error:
        why = f"is not valid JSON: {error.msg}: line {error.lineno} column {error.colno}"
        raise InvalidJSON({"body": why}) from None
    # Most bodies cannot hold any of it and are spared the walk: without an escape a
    # string is clean, since neither raw NUL nor raw surrogates have got this far.
    if reader.suspicious or "\\u" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        reader.walk(value, [])
        if reader.problems:
            raise InvalidJSON(reader.problems)
    return value
