"""Results of HTTP tools: the texts that the model reads, from any JSON."""

import json

import pytest

from arkloop.shared.security.exchange import Response
from arkloop.worker.http_tools.results import output_of, refusal_of
from arkloop.worker.tools import ToolFailed

#: More values than a request body may have.
MANY = list(range(100_000))


def response(body: bytes, status: int = 200) -> Response:
    return Response(status, "application/json", body)


@pytest.mark.parametrize(
    ("body", "output"),
    [
        (rb'{"output": "a\ud800\u0000"}', "a\ud800\x00"),
        (b'{"output": {"mean": NaN}}', '{"mean":"NaN"}'),
        (b'{"output": {"n": 1, "n": 2}}', '{"n":2}'),
        (b'{"output": %s}' % (b"[" * 80 + b"]" * 80), "[" * 80 + "]" * 80),
    ],
)
def test_output_may_be_any_json(body: bytes, output: str) -> None:
    """What a request body may not contain is no reason to drop what the tool's author wrote."""
    assert output == output_of(response(body))
    with pytest.raises(ToolFailed) as refused:
        output_of(response(body, 422))
    assert output == str(refused.value)


@pytest.mark.parametrize(("status", "is_error"), [(200, True), (422, False)])
def test_a_failure_of_many_values_is_a_failure(status: int, is_error: bool) -> None:
    """However long `output` is, the model reads it, and that the call has failed."""
    body = json.dumps({"output": MANY, "is_error": is_error}).encode()

    with pytest.raises(ToolFailed) as failed:
        output_of(response(body, status))

    assert MANY == json.loads(str(failed.value))


@pytest.mark.parametrize(
    "body",
    [
        b'{"output": "Too old.", "is_error": true, "code": "too_old"}',
        b'{"is_error": true, "message": "Too old."}',
        b'{"is_error": true}',
    ],
)
def test_is_error_makes_a_failure_of_any_object(body: bytes) -> None:
    """A refusal with a field more or less is no success: the model reads the whole body."""
    with pytest.raises(ToolFailed) as failed:
        output_of(response(body))

    assert body.decode() == str(failed.value)


@pytest.mark.parametrize("is_error", [True, False])
def test_other_fields_of_a_failing_status_are_not_shown(is_error: bool) -> None:
    """`output` beside `is_error` is what the author wrote for the model; the rest may be secret."""
    written = {"output": "Ask for the number.", "is_error": is_error, "trace": "secret"}
    refused = response(json.dumps(written).encode(), 404)

    with pytest.raises(ToolFailed) as failed:
        output_of(refused)

    assert "Ask for the number." == str(failed.value) == refusal_of(refused)


@pytest.mark.parametrize(
    "body",
    [
        b'{"output": "x", "exit_code": 1}',
        b'{"output": "x", "is_error": false, "exit_code": 1}',
        b'{"is_error": "no", "exit_code": 1}',
    ],
)
def test_other_json_with_a_field_of_a_result_is_read_whole(body: bytes) -> None:
    """A tool's own JSON may have fields of these names, and loses none of the others."""
    assert body.decode() == output_of(response(body))


@pytest.mark.parametrize("body", [b'{"output": "x", "code": 1}', b'{"is_error": true}'])
def test_an_error_page_with_a_field_of_a_result_is_not_shown(body: bytes) -> None:
    """Neither field alone says that the author wrote the body of a failing status for the model."""
    with pytest.raises(ToolFailed, match=r"^The tool responded with HTTP status 404\.$"):
        output_of(response(body, 404))
    assert "The tool responded with HTTP status 404." == refusal_of(response(body, 404))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain; charset=iso-8859-1", "café"),
        ('application/json; charset="ISO-8859-1"', '{"output": "café"}'),
        ("text/csv", "\ufeffcafé"),
    ],
)
def test_text_is_decoded_by_its_charset(content_type: str, body: str) -> None:
    """What the model reads has the letters that the tool's author has written."""
    sent = body.encode("latin-1" if "charset" in content_type else "utf-8")

    assert "café" == output_of(Response(200, content_type, sent))


def test_a_result_may_have_a_byte_that_cannot_be_read() -> None:
    """U+FFFD replaces it, and a failure stays one."""
    with pytest.raises(ToolFailed) as failed:
        output_of(response(b'{"output": "caf\xe9", "is_error": true}'))

    assert "caf\ufffd" == str(failed.value)


def test_json_that_is_nested_too_deep_to_be_read_is_text() -> None:
    """The model reads the body as it is."""
    body = b'{"output": ' + b"[" * 100_000

    assert body.decode() == output_of(response(body))
