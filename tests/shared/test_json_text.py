"""The JSON reader that refuses what two readers could understand in two ways."""

import gc
import json
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared import json_text
from arkloop.shared.json_text import InvalidJSON, has_more_values
from tests.processor_time import is_within

_storable = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _storable,
    lambda inner: st.lists(inner) | st.dictionaries(_storable, inner),
)


@given(_values)
def test_whatever_can_be_stored_is_read_as_it_was_written(value: object) -> None:
    """Escaped or not, each value comes back."""
    assert value == json_text.loads(json.dumps(value).encode())
    assert value == json_text.loads(json.dumps(value, ensure_ascii=False).encode())


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Arbitrary bytes are read or refused, and fail in no other way."""
    with suppress(InvalidJSON):
        json_text.loads(data)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('{"a": 1, "a": 1}', {"a": "duplicate field"}),
        ('{"a": {"b": [{"c": 1, "c": 2}]}}', {"a.b.0.c": "duplicate field"}),
        ('{"a": NaN}', {"a": "NaN is not valid JSON"}),
        ('{"a": [1, Infinity]}', {"a.1": "Infinity is not valid JSON"}),
        ('{"a": -Infinity}', {"a": "-Infinity is not valid JSON"}),
        ('{"a": 1e999}', {"a": "is too large a number"}),
        ('{"a": 9223372036854775808}', {"a": "does not fit in 64 bits"}),
        ('{"a": -9223372036854775809}', {"a": "does not fit in 64 bits"}),
        ('{"a": "\\u0000"}', {"a": "contains a NUL character or a lone surrogate"}),
        ('{"a": "x\\ud800y"}', {"a": "contains a NUL character or a lone surrogate"}),
        ('{"a": "\\udc00\\ud800"}', {"a": "contains a NUL character or a lone surrogate"}),
        ('{"b\\u0000": 1}', {"b\ufffd": "contains a name that cannot be stored"}),
        ("NaN", {"body": "NaN is not valid JSON"}),
    ],
)
def test_what_is_wrong_is_named(text: str, problems: dict[str, str]) -> None:
    """Each problem comes with the path of the field that has it."""
    with pytest.raises(InvalidJSON) as caught:
        json_text.loads(text.encode())

    assert problems == caught.value.problems


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": 01}',
        b'{"a": "\x00"}',
        b'{"a": "\n"}',
        b'{"a": 1} {"b": 2}',
        b'\xef\xbb\xbf{"a": 1}',  # byte order mark
        b'{"a": "\xff"}',
        b'{"a": "\xc0\xaf"}',  # overlong
        b'{"a": "\xed\xa0\x80"}',  # a surrogate in UTF-8
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32-le"),
    ],
)
def test_what_is_not_json_in_utf_8_is_refused_whole(data: bytes) -> None:
    """Bad syntax and bad encodings are the body's problem."""
    with pytest.raises(InvalidJSON) as caught:
        json_text.loads(data)

    assert ["body"] == list(caught.value.problems)


def test_extremes_that_fit_are_read() -> None:
    """64-bit integers, an escaped pair of surrogates and a negative zero are fine."""
    text = '{"most": 9223372036854775807, "least": -9223372036854775808, "a": "\\ud83d\\ude00"}'

    expected = {"most": 2**63 - 1, "least": -(2**63), "a": "😀"}
    assert expected == json_text.loads(text.encode())
    assert 0 == json_text.loads(b"-0")


@pytest.mark.parametrize(("depth", "fits"), [(64, True), (65, False)])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_ends_at_64(depth: int, fits: bool, opening: str, closing: str) -> None:
    """64 arrays or objects within each other are read, 65 are not."""
    text = opening * depth + "1" + closing * depth
    try:
        json_text.loads(text.encode())
        read = True
    except InvalidJSON:
        read = False

    assert fits == read


def test_the_field_that_is_nested_too_deep_is_named() -> None:
    """The outermost name tells enough."""
    with pytest.raises(InvalidJSON) as caught:
        json_text.loads(b'{"deep": ' + b"[" * 64 + b"]" * 64 + b"}")

    assert {"deep": "is nested deeper than 64 levels"} == caught.value.problems


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ' + "9" * 5_000 + "}",
        '{"a": ' + "9" * 1_000_000 + "}",
        '{"a": -' + "9" * 5_000 + "}",
        "[" * 500_000,
        '{"a":' * 100_000,
    ],
    ids=["5,000 digits", "a million digits", "negative", "brackets", "braces"],
)
def test_bombs_are_refused_quickly(text: str) -> None:
    """Endless digits and endless nesting are refused quickly."""

    def refused() -> None:
        with pytest.raises(InvalidJSON):
            json_text.loads(text.encode())

    assert is_within(0.25, refused)


def _mebibyte(head: bytes, unit: bytes, tail: bytes) -> bytes:
    return head + unit * ((2**20 - len(head) - len(tail)) // len(unit)) + tail


_ADVERSARIAL = {
    "a long key over many items": b'{"' + b"k" * 500_000 + b'":[' + b"0," * 250_000 + b"NaN]}",
    "a long key over many problems": b'{"' + b"k" * 500_000 + b'":[' + b"NaN," * 300 + b"0]}",
    "long keys inside each other": b'{"'
    + b'":{"'.join([b"k" * 16_000] * 63)
    + b'":NaN'
    + b"}" * 63,
    "long keys with problems": b"{" + b",".join(b'"%0100d":NaN' % i for i in range(9_000)) + b"}",
    "keys that cannot be stored": b"{"
    + b",".join(b'"%d\\u0000":0' % i for i in range(9_000))
    + b"}",
    "many keys": b"{" + b",".join(b'"%d":0' % i for i in range(90_000)) + b"}",
    "duplicate keys": _mebibyte(b"{", b'"a":0,', b'"a":0}'),
    "NaN": _mebibyte(b"[", b"NaN,", b"0]"),
    "empty lists": _mebibyte(b"[", b"[],", b"0]"),
    "empty objects": _mebibyte(b"[", b"{},", b"0]"),
    "integers beyond 64 bits": _mebibyte(b"[", b"9" * 25 + b",", b"0]"),
    "one integer": _mebibyte(b"", b"9", b""),
    "one fraction": _mebibyte(b"0.", b"1", b""),
    "deep and wide": _mebibyte(b"[", b"[" * 64 + b"]" * 64 + b",", b"0]"),
    "only openings": _mebibyte(b"", b'{"a":', b""),
    "only quotes": _mebibyte(b"", b'"', b""),
    "empty strings": _mebibyte(b"[", b'"",', b"0]"),
    "escaped quotes": _mebibyte(b'["', b'\\"', b'"]'),
    "escaped backslashes": _mebibyte(b'["', b"\\\\", b'"]'),
    "lone surrogates": _mebibyte(b'["', b"\\ud800", b'"]'),
    "an emoji among commas": _mebibyte('["😀'.encode(), b",", b'"]'),
}


@pytest.mark.parametrize("data", _ADVERSARIAL.values(), ids=_ADVERSARIAL.keys())
def test_a_mebibyte_costs_little_whatever_is_in_it(data: bytes) -> None:
    """50 ms, 20 MB, and 50 short problems are the most that one body takes."""
    problems: dict[str, str] = {}
    seconds: list[float] = []
    until = time.monotonic() + 30  # a core may be slow for seconds
    while not seconds or (min(seconds) > 0.05 and time.monotonic() < until):
        began = time.thread_time()
        with suppress(InvalidJSON):
            json_text.loads(data)
        seconds.append(time.thread_time() - began)
    gc.collect()
    tracemalloc.start()
    try:
        json_text.loads(data)
    except InvalidJSON as error:
        problems = error.problems
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert len(data) <= 2**20
    assert min(seconds) <= 0.05
    assert peak <= 20_000_000
    assert len(problems) <= 50
    assert all(len(name) <= 100 and len(why) <= 100 for name, why in problems.items())


@pytest.mark.parametrize(("count", "fits"), [(9_999, True), (10_000, False)])
@pytest.mark.parametrize("item", ["1", '"a"', '"a,[{\\"b"', '"\\\\"'])
def test_a_text_has_at_most_10_000_values(count: int, fits: bool, item: str) -> None:
    """The list itself is one of them; commas and brackets in strings are none."""
    data = ("[" + ",".join([item] * count) + "]").encode()
    if fits:
        assert count == len(json_text.loads(data))
        return
    with pytest.raises(InvalidJSON, match="contains more than 10,000 values"):
        json_text.loads(data)


def _count(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, items))


@pytest.mark.parametrize(
    "value",
    [
        [0] * 9,
        [[0, [1, 2]], [3, [4]], 5],
        {"a": 1, "b": {"c": [2, 3], "d": {}}},
        ["a,b", "[{,", '\\",[', "\\\\", '"', {",[{": ',"'}],
    ],
)
def test_values_are_counted_as_a_parser_would(value: Any) -> None:
    """Separators in strings are not counted, however the strings are escaped."""
    text, count = json.dumps(value).encode(), _count(value)

    assert has_more_values(text, count - 2)
    assert not has_more_values(text, count + 1)
