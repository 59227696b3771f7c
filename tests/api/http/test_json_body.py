"""Bodies and query parameters, as every endpoint takes them."""

import gc
from typing import Any

import pytest
from flask import Flask, Response, jsonify
from flask.testing import FlaskClient
from marshmallow import fields

from arkloop.api.app import create_app
from arkloop.api.http.fields import Digits, Id, StrictBoolean, utf8_length
from arkloop.api.http.json_body import MAX_BODY_BYTES, query_args, read_body
from arkloop.api.http.schema import Schema
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.clients import details_of, error_of

JSON = {"Content-Type": "application/json"}


class Inner(Schema):
    text = fields.String(required=True)


class Body(Schema):
    text = fields.String(validate=utf8_length(1, 10))
    flag = StrictBoolean()
    inner = fields.Nested(Inner)
    items = fields.List(fields.Nested(Inner))
    id = Id()


class Query(Schema):
    number = Digits(least=1, most=200)
    big = Digits()
    text = fields.String()


@pytest.fixture(scope="module")
def app(connections: Connections) -> Flask:
    """The app with endpoints that echo what they have read."""
    app = create_app(connections=connections)

    @app.post("/echo")
    def echo() -> Response:
        return jsonify({name: str(value) for name, value in read_body(Body()).items()})

    @app.post("/optional")
    def optional() -> Response:
        return jsonify(read_body(Body(), optional=True))

    @app.get("/query")
    def query() -> Response:
        return jsonify(query_args(Query()))

    return app


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b'{"text": "a", "text": "b"}', "text"),
        (b'{"text": "a\\u0000"}', "text"),
        (b'{"text": "\\ud800"}', "text"),
        (b'{"text": 1}', "text"),
        (b'{"text": null}', "text"),
        (b'{"text": NaN}', "text"),
        (b'{"text": ""}', "text"),
        (b'{"text": 99999999999999999999}', "text"),
        (b'{"flag": 1}', "flag"),
        (b'{"flag": "true"}', "flag"),
        (b'{"id": "x"}', "id"),
        (b'{"id": 1}', "id"),
        (b'{"inner": {}}', "inner.text"),
        (b'{"inner": {"text": "a", "x": 1}}', "inner.x"),
        (b'{"inner": []}', "inner"),
        (b'{"items": [{"text": "a"}, {"text": 2}]}', "items.1.text"),
        (b'{"unknown": 1}', "unknown"),
        (b'{"org_id": "x"}', "org_id"),
        (b'{"self": 1}', "self"),
        (b'{"message": 1}', "message"),
        (b'{"a\\u0000b": 1}', "a\ufffdb"),
        (b'{"' + b"n" * 500 + b'": 1}', "n" * 100),
        (b'{"text": "\xff"}', "body"),
        (b'\xef\xbb\xbf{"text": "a"}', "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b'"text"', "body"),
        (b"null", "body"),
        (b"", "body"),
    ],
)
def test_a_bad_body_is_refused_and_its_field_named(
    client: FlaskClient, data: bytes, field: str
) -> None:
    """The response is a 422 that says where the body is wrong."""
    details = details_of(client.post("/echo", data=data, headers=JSON))

    assert [field] == list(details)
    assert all(isinstance(why, str) and why for why in details[field])


def test_thousands_of_unknown_fields_get_a_short_response(client: FlaskClient) -> None:
    """At most 50 of them are echoed, each with a name of at most 100 characters."""
    data = "{" + ",".join(f'"{number:0100}":1' for number in range(9_000)) + "}"

    response = client.post("/echo", data=data, headers=JSON)

    assert 50 == len(details_of(response))
    assert len(response.data) < 10_000


@pytest.mark.parametrize(
    "fields_",
    [
        ['"text":0', *(f'"{number:0100}":1' for number in range(9_000))],
        ['"text":0', '"items":[' + ",".join(['{"text":1}'] * 4_000) + "]"],
        ['"inner":{' + ",".join(f'"{number:0100}":1' for number in range(9_000)) + "}"],
    ],
    ids=["unknown fields", "items", "fields of an object"],
)
def test_nothing_of_a_refused_body_stays_for_the_garbage_collector(
    client: FlaskClient, fields_: list[str]
) -> None:
    data = "{" + ",".join(fields_) + "}"
    client.post("/echo", data="{}", headers=JSON)
    gc.collect()
    gc.disable()
    try:
        response = client.post("/echo", data=data, headers=JSON)
        left = gc.collect()
    finally:
        gc.enable()

    assert response.status_code == 422
    assert left < 1_000


@pytest.mark.parametrize(("text", "status"), [("€" * 3, 200), ("€" * 3 + "aa", 422)])
def test_lengths_count_bytes(client: FlaskClient, text: str, status: int) -> None:
    """Three euro signs have nine bytes, escaped in JSON or not."""
    assert status == client.post("/echo", json={"text": text}).status_code
    raw = f'{{"text": "{text}"}}'.encode()
    assert status == client.post("/echo", data=raw, headers=JSON).status_code


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
        'application/json; charset="utf-8"',
    ],
)
def test_json_in_utf_8_is_taken(client: FlaskClient, content_type: str) -> None:
    """However its media type is spelled."""
    response = client.post("/echo", data=b"{}", headers={"Content-Type": content_type})

    assert 200 == response.status_code


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "text/json"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=utf-7"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "identity"},
    ],
)
def test_any_other_media_type_is_refused(client: FlaskClient, headers: dict[str, str]) -> None:
    """Forms, other charsets and compressed bodies are not guessed at."""
    response = client.post("/echo", data=b"{}", headers=headers)

    assert (415, "http.unsupported_media_type") == error_of(response)


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413)])
def test_a_body_has_at_most_one_mebibyte(client: FlaskClient, size: int, status: int) -> None:
    """Exactly that much is read, one byte more is not."""
    data = b"{}".ljust(size)

    assert status == client.post("/echo", data=data, headers=JSON).status_code


def test_an_optional_body_may_be_missing(client: FlaskClient) -> None:
    """No body is an empty object; a body that is there is checked all the same."""
    assert {} == client.post("/optional").json
    assert {"text": "a"} == client.post("/optional", json={"text": "a"}).json
    assert ["x"] == list(details_of(client.post("/optional", json={"x": 1})))


def test_a_post_takes_no_query(client: FlaskClient) -> None:
    """What belongs into the body is not taken from the address."""
    assert ["text"] == list(details_of(client.post("/echo?text=a", json={})))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *((f"number={value}", "number") for value in ("0", "201", "-1", "1.0", "1e2", "+5", "")),
        *((f"number={value}", "number") for value in ("%205", "5%20", "%D9%A3", "0x1", "1_0")),
        *((f"number={value}", "number") for value in ("5%0A", "5%00", "9" * 5_000)),
        (f"big={2**63}", "big"),
        (f"big={10**30}", "big"),
        ("number=5&number=5", "number"),
        ("text=%FF", "query"),
        ("text=%00", "text"),
        ("unknown=1", "unknown"),
        ("unknown", "unknown"),
        ("self=1", "self"),
    ],
)
def test_a_bad_query_is_refused_and_its_parameter_named(
    client: FlaskClient, query: str, field: str
) -> None:
    """Unknown, repeated and malformed parameters are a 422, never a silent default."""
    assert [field] == list(details_of(client.get(f"/query?{query}")))


def test_a_good_query_is_read(client: FlaskClient) -> None:
    """Integers in ASCII digits within their bounds."""
    expected: dict[str, Any] = {"number": 200, "big": 2**63 - 1, "text": "ä b"}

    assert expected == client.get(f"/query?number=200&big={2**63 - 1}&text=%C3%A4+b").json


def test_only_the_canonical_form_of_an_id_is_one(client: FlaskClient) -> None:
    """An id has one spelling, and every other one is refused."""
    canonical = str(new_id())
    others = [
        canonical.upper(),
        canonical.replace("-", ""),
        f"{{{canonical}}}",
        f"urn:uuid:{canonical}",
        f" {canonical}",
        canonical[:14] + "4" + canonical[15:],  # another version
    ]

    assert {"id": canonical} == client.post("/echo", json={"id": canonical}).json
    for other in others:
        assert ["id"] == list(details_of(client.post("/echo", json={"id": other})))
