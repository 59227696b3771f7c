"""Requests of a process that cannot make a connection."""

import pytest

from arkloop.shared.errors import Unavailable
from arkloop.shared.security import exchange
from arkloop.shared.security.egress import Policy
from tests.no_descriptor import no_descriptor_left
from tests.tool_receiver import Reply, ToolReceiver


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_process_without_a_descriptor_blames_no_server(host: str) -> None:
    """It cannot look a name up either; nothing is sent, and the server is not out of reach."""
    policy = Policy.of(["127.0.0.0/8", "::1/128"])
    with ToolReceiver(lambda _: Reply()) as receiver:
        url = receiver.url.replace("127.0.0.1", host)

        def post() -> int:
            sent = exchange.post(exchange.unaborted, url, policy, {}, b"{}", 5, most_bytes=100)
            return sent.status

        assert 200 == post()
        with no_descriptor_left(), pytest.raises(Unavailable) as raised:
            post()

        assert "Too many open files" in str(raised.value.__cause__)
        assert 1 == len(receiver.received)
