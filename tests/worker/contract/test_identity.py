"""The identity of a tool call, and the form of its keys."""

import re

import pytest

from arkloop.worker.contract.identity import idempotency_key, traceparent


@pytest.mark.parametrize("call_id", ["call_1_1", "toolu_01A-b"])
def test_a_usual_id_is_part_of_the_key_as_it_is(call_id: str) -> None:
    """Keys of calls with usual ids can be recognised by people."""
    assert f"run:{call_id}" == idempotency_key("run", call_id)


def test_an_unusual_id_makes_a_key_that_fits_into_headers_and_signatures() -> None:
    """Ids that vendors choose cannot add lines to headers or dots to signed text, and stay
    different.
    """
    ids = ["a.1.{}", "a\r\nX: y", "é", "a b", "~" + "0" * 32, "x" * 256, "x" * 255]

    keys = {idempotency_key("run", call_id) for call_id in ids}

    assert len(ids) == len(keys)
    assert all(re.fullmatch("run:~[0-9a-f]{32}", key) for key in keys)


def test_the_trace_context_of_a_call_is_a_span_of_the_run() -> None:
    """A repeated call is the same span, another call another one, all in the run's trace."""
    first, again, other = (traceparent("5" * 32, key) for key in ("a", "a", "b"))

    assert first == again != other
    assert re.fullmatch("00-5{32}-[0-9a-f]{16}-01", first)
