"""The rules for metadata, which clients attach to their threads and runs."""

import re
from collections.abc import Mapping

from arkloop.shared.errors import InvalidRequest

KEY = re.compile("[A-Za-z0-9_.-]{1,64}")
MAX_PAIRS = 32
MAX_VALUE_LENGTH = 512


def merged(metadata: Mapping[str, str], change: Mapping[str, str | None]) -> dict[str, str]:
    """Return metadata with a change, in which null removes a key.

    Raises:
        InvalidRequest: the result has too many pairs.
    """
    result = {key: value for key, value in {**metadata, **change}.items() if value is not None}
    if len(result) > MAX_PAIRS:
        raise InvalidRequest(metadata=[f"would have more than {MAX_PAIRS} pairs"])
    return result
