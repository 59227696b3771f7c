"""The header `Prefer` by the grammar of RFC 7240."""

import pytest
from flask import Flask

from arkloop.api.http.preferences import wait_seconds


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (["wait=10"], 10),
        (["WAIT=10"], 10),
        (['wait = "10"'], 10),
        (["wait=10; strictly"], 10),
        (["wait=10;strictly=yes, respond-async"], 10),
        (['note="a, wait=7; b"', "respond-async, wait=10"], 10),
        (["wait=10, Wait=20"], 10),
        (["wait=10", "wait=20"], 10),
        (["wait=0"], 0),
        (["wait=0061"], 60),
        (["wait=" + 5_000 * "9"], 60),
        ([], None),
        (["wait"], None),
        (["wait="], None),
        (["wait=x, wait=10"], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=٣"], None),  # a digit that Python reads as one
        (["respond-async; wait=10"], None),
    ],
)
def test_the_first_wait_counts(sent: list[str], seconds: int | None) -> None:
    """Names ignore case, a preference may have parameters, and a large number is the limit."""
    with Flask(__name__).test_request_context(headers=[("Prefer", line) for line in sent]):
        assert seconds == wait_seconds()
