"""Regular expressions of JSON Schemas: which are supported, and what takes long to compile."""

import re
from functools import lru_cache

import jsonschema_rs

#: Linear in the length of the text and in the size of the pattern; sizes in bytes.
OPTIONS = jsonschema_rs.RegexOptions(size_limit=16_384, dfa_size_limit=16_384)

#: Or may: after `x`, space may stand between the characters of a pattern, as in `( ?i:`.
_IGNORES_CASE = re.compile(r"\(\?[a-zA-Z]*[ix]")
#: A class by property, or a range in one that ends beyond ASCII, or in a comment after `x`.
_WIDE_CLASS = re.compile(r"\\[pP]|-\s*(?:#|\\[xuU]|[^\x00-\x7f])")
#: Wide within brackets.
_NEGATED_CLASS = re.compile(r"\\[DSW]")


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
