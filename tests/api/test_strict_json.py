"""The JSON reader that refuses what two readers could understand in two ways."""

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import strict_json
from api.strict_json import InvalidJSON

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
    assert value == strict_json.loads(json.dumps(value).encode())
    assert value == strict_json.loads(json.dumps(value, ensure_ascii=False).encode())


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No input makes it fail in another way."""
    with suppress(InvalidJSON):
        strict_json.loads(data)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('{"a": 1, "a": 1}', {"a": "is given twice"}),
        ('{"a": {"b": [{"c": 1, "c": 2}]}}', {"a.b.0.c": "is given twice"}),
        ('{"a": NaN}', {"a": "NaN is not JSON"}),
        ('{"a": [1, Infinity]}', {"a.1": "Infinity is not JSON"}),
        ('{"a": -Infinity}', {"a": "-Infinity is not JSON"}),
        ('{"a": 1e999}', {"a": "is too large a number"}),
        ('{"a": 9223372036854775808}', {"a": "does not fit into 64 bits"}),
        ('{"a": -9223372036854775809}', {"a": "does not fit into 64 bits"}),
        ('{"a": "\\u0000"}', {"a": "has a NUL character or a lone surrogate"}),
        ('{"a": "x\\ud800y"}', {"a": "has a NUL character or a lone surrogate"}),
        ('{"a": "\\udc00\\ud800"}', {"a": "has a NUL character or a lone surrogate"}),
        ('{"b\\u0000": 1}', {"b\ufffd": "has a name that cannot be stored"}),
        ("NaN", {"body": "NaN is not JSON"}),
    ],
)
def test_what_is_wrong_is_named(text: str, problems: dict[str, str]) -> None:
    """Each problem comes with the path of the field that has it."""
    with pytest.raises(InvalidJSON) as caught:
        strict_json.loads(text.encode())

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
        strict_json.loads(data)

    assert ["body"] == list(caught.value.problems)


def test_extremes_that_fit_are_read() -> None:
    """64-bit integers, an escaped pair of surrogates and a negative zero are fine."""
    text = '{"most": 9223372036854775807, "least": -9223372036854775808, "a": "\\ud83d\\ude00"}'

    expected = {"most": 2**63 - 1, "least": -(2**63), "a": "😀"}
    assert expected == strict_json.loads(text.encode())
    assert 0 == strict_json.loads(b"-0")


@pytest.mark.parametrize(("depth", "fits"), [(64, True), (65, False)])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_ends_at_64(depth: int, fits: bool, opening: str, closing: str) -> None:
    """64 arrays or objects within each other are read, 65 are not."""
    text = opening * depth + "1" + closing * depth
    try:
        strict_json.loads(text.encode())
        read = True
    except InvalidJSON:
        read = False

    assert fits == read


def test_the_field_that_is_nested_too_deep_is_named() -> None:
    """The outermost name tells enough."""
    with pytest.raises(InvalidJSON) as caught:
        strict_json.loads(b'{"deep": ' + b"[" * 64 + b"]" * 64 + b"}")

    assert {"deep": "is nested deeper than 64"} == caught.value.problems


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
    """Neither endless digits nor endless nesting cost time."""
    began = time.thread_time()

    with pytest.raises(InvalidJSON):
        strict_json.loads(text.encode())

    assert time.thread_time() - began < 0.25
