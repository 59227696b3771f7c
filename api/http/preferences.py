"""`Prefer` (RFC 7240): what a client would like, and a server may do."""

import re

from flask import request
from werkzeug.http import parse_list_header, unquote_header_value

MAX_WAIT_SECONDS = 60


def wait_seconds() -> int | None:
    """Return the seconds of `Prefer: wait=N`, at most `MAX_WAIT_SECONDS`; None without it.

    As the RFC demands, names ignore case, the first of several counts, and a preference of another
    form is ignored: the response then lacks `Preference-Applied`.
    """
    for preference in parse_list_header(", ".join(request.headers.getlist("Prefer"))):
        # What follows the semicolon are parameters, of which `wait` has none.
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            return _seconds(unquote_header_value(value.strip()))
    return None


def _seconds(text: str) -> int | None:
    if not re.fullmatch("[0-9]+", text):
        return None
    digits = text.lstrip("0")
    return MAX_WAIT_SECONDS if len(digits) > 2 else min(int(digits or "0"), MAX_WAIT_SECONDS)
