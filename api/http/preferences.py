"""`Prefer` (RFC 7240): what a client would like, and a server may do."""

import re

from flask import request
from werkzeug.http import parse_dict_header

MAX_WAIT_SECONDS = 60


def wait_seconds() -> int | None:
    """Return the seconds of `Prefer: wait=N`, at most `MAX_WAIT_SECONDS`; None without it.

    As the RFC demands, a preference of another form is ignored: the response then lacks
    `Preference-Applied`.
    """
    wait = parse_dict_header(", ".join(request.headers.getlist("Prefer"))).get("wait")
    if wait is None or not re.fullmatch("[0-9]{1,9}", wait):
        return None
    return min(int(wait), MAX_WAIT_SECONDS)
