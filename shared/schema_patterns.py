"""Regular expressions of JSON Schemas: which are supported, and what takes long to compile."""

import re
from functools import lru_cache

import jsonschema_rs

#: Linear in the length of the text and in the size of the pattern; sizes in bytes. A larger limit
#: would let each character cost more: with four times as much, up to four times.
OPTIONS = jsonschema_rs.RegexOptions(size_limit=16_384, dfa_size_limit=16_384)

#: Or may: after `x`, space may stand between the characters of a pattern, as in `( ?i:`.
_IGNORES_CASE = re.compile(r"\(\?[a-zA-Z]*[ix]")
#: A class by property, or a range in one that ends beyond ASCII, or in a comment after `x`.
_WIDE_CLASS = re.compile(r"\\[pP]|-\s*(?:#|\\[xuU]|[^\x00-\x7f])")
#: Wide within brackets.
_NEGATED_CLASS = re.compile(r"\\[DSW]")
#: Of an engine that goes back in the text, unless it is escaped or in brackets.
_BACKTRACKING = re.compile(r"\(\?<?[=!]|\(\?P=|\\[1-9]|\\k<")
_LITERAL = re.compile(r"\\[^1-9k]|\[(?:\\.?|[^\]\\])*(?:\]|\Z)", re.DOTALL)


def folded_classes(pattern: str) -> int:
    """Count the classes of a pattern to which the other case of many characters is added."""
    if not _IGNORES_CASE.search(pattern):
        return 0
    within = min(pattern.count("["), len(_NEGATED_CLASS.findall(pattern)))
    return len(_WIDE_CLASS.findall(pattern)) + within


def characters(pattern: str, *, is_known: bool) -> int:
    """Count the characters of a pattern by how long it takes: each may take 8 µs.

    A schema compiles it twice; only once if it `is_known` from another schema.
    """
    length = 64 + len(pattern)
    return (length // 2 if is_known else length) + 1_000 * folded_classes(pattern)


@lru_cache(maxsize=1_024)
def is_supported(pattern: str) -> bool:
    """Return whether a pattern can be matched in linear time, and is not too large."""
    try:
        jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=OPTIONS)
    except ValueError:
        return False
    return True


def problem(pattern: str) -> str | None:
    """Return the end of a sentence about a pattern that is not supported, None for any other."""
    if is_supported(pattern):
        return None
    if _BACKTRACKING.search(_LITERAL.sub("", pattern)):
        return "needs look-around or back-references, which are not supported."
    return "is too large when compiled, or is none; use `maxLength` to limit a length."
