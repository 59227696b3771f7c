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

#: Of the process that answers, which other programs of the machine do not lengthen. Where the
#: processor is slow, a harmless text of the same length may take a tenth of the time.
MOST_SECONDS, MOST_TIMES = 0.2, 10
HARMLESS = "run-" * 2000
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


@pytest.fixture(scope="module")
def tried(app: Flask) -> list[tuple[str, str]]:
    """All of them: the description is built once."""
    return [*filters(app)]


@pytest.mark.parametrize("kind", TEXTS)
def test_a_hostile_filter_is_answered_at_once(
    tried: list[tuple[str, str]], alice: User, kind: str
) -> None:
    """A list or a refusal, in a fifth of a second of processor time at most."""
    text = TEXTS[kind] if "%ff" in TEXTS[kind] else quote(TEXTS[kind])[:8000]
    slow: dict[tuple[str, str], tuple[float, float]] = {}
    for path, name in tried:
        took = seconds_of(alice, f"{path}?{name}={text}")
        if took > MOST_SECONDS:
            harmless = seconds_of(alice, f"{path}?{name}={HARMLESS[: len(text)]}")
            if took > MOST_TIMES * harmless:
                slow[path, name] = (took, harmless)

    assert len(tried) > 40
    assert {} == slow


def seconds_of(user: User, path: str) -> float:
    """Return what a response takes of the processor, at the second time if the first is slow."""
    took = []
    for _ in range(2):  # what the process keeps of an org is read once
        began = time.thread_time()
        response = user.get(path)
        response.close()
        took.append(time.thread_time() - began)
        assert response.status_code < 500, (path, response.text)
        if took[-1] <= MOST_SECONDS:
            break
    return min(took)
