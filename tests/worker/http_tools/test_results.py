"""Results of HTTP tools: the texts that the model reads, from any JSON."""

import json

import pytest

from arkloop.shared.security.exchange import Response
from arkloop.worker.http_tools.results import output_of
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


def test_json_that_is_nested_too_deep_to_be_read_is_text() -> None:
    """The model reads the body as it is."""
    body = b'{"output": ' + b"[" * 100_000

    assert body.decode() == output_of(response(body))
