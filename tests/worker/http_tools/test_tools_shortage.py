"""HTTP tools in a process that has no file descriptor left."""

import pytest

from arkloop.shared.errors import Unavailable
from tests.no_descriptor import no_descriptor_left
from tests.tool_receiver import ToolReceiver
from tests.worker.http_tools.test_tools import Made, call, failure, made, receiver, settings

__all__ = ["made", "receiver", "settings"]  # fixtures


def test_another_worker_calls_an_idempotent_tool(receiver: ToolReceiver, made: Made) -> None:
    """The call has no result here."""
    tool, _ = made(idempotent=True)
    assert "ok" == call(tool)

    with no_descriptor_left(), pytest.raises(Unavailable):
        call(tool)

    assert 1 == len(receiver.received)


def test_the_model_reads_that_another_tool_was_not_called(
    receiver: ToolReceiver, made: Made
) -> None:
    """Another worker would not know: it must take the call for one that may have been made."""
    tool, _ = made(timeout_seconds=0.6)
    assert "ok" == call(tool)

    with no_descriptor_left():
        assert "Not called: the worker has no file descriptor left." == failure(tool)

    assert 1 == len(receiver.received)
