"""Filters of all lists with texts that cost much to look for: each that the description names."""

import re
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from flask import Flask

from arkloop.api.description import document
from tests.api.auth.test_bearer import AN_ID, NAMES
from tests.clients import User

#: Of the process that answers, which other programs of the machine do not lengthen.
MOST_SECONDS = 0.2
TEXTS = {
    "a repeated group": "(a+)+$" * 100,
    "wildcards of LIKE": "%_" * 1000 + "\\",
    "an array of JSON": "[" * 1000,
    "ligatures": "ﷺ" * 500,
    "marks on one letter": "e" + "\u0301" * 800,
    "letters that grow in lower case": "İ" * 800,
    "right-to-left": "\u202e" * 500,
    "digits": "9" * 4000,
    "digits of other scripts": "٣" * 800,
    "one long word": "a" * 7000,
    "pairs": "a:b," * 1500,
    "escapes": "%00%ff",
}


def filters(app: Flask) -> Iterator[tuple[str, str]]:
    """List path and name of each parameter of a query that is a text, of anything that is read."""
    for path, operations in document.build(app)["paths"].items():
        named = re.sub("{(.*?)}", lambda name: NAMES.get(name[1], AN_ID), path)
        for parameter in operations.get("get", {}).get("parameters", ()):
            if parameter.get("in") == "query":
                yield named, parameter["name"]


@pytest.mark.parametrize("kind", TEXTS)
def test_a_hostile_filter_is_answered_at_once(app: Flask, alice: User, kind: str) -> None:
    """A list or a refusal, in a fifth of a second of processor time at most."""
    text = TEXTS[kind] if "%ff" in TEXTS[kind] else quote(TEXTS[kind])[:8000]
    slow: dict[tuple[str, str], float] = {}
    tried = [*filters(app)]
    for path, name in tried:
        took = []
        for _ in range(2):  # what the process keeps of an org is read once
            began = time.thread_time()
            response = alice.get(f"{path}?{name}={text}")
            response.close()
            took.append(time.thread_time() - began)
            assert response.status_code < 500, (path, name, response.text)
        if min(took) > MOST_SECONDS:
            slow[path, name] = min(took)

    assert len(tried) > 40
    assert {} == slow
