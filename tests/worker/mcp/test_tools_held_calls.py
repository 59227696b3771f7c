"""Calls that a server holds, and calls without access, where no server is asked any more."""

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections, connect
from arkloop.worker.contract.input_requests import InputRequired, Replies
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp import MAY_BE_DONE, access
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.server import Server
from arkloop.worker.mcp.tools import McpTools, _caller
from arkloop.worker.tools import ToolFailed
from tests.stored_runs import StoredRuns
from tests.worker.mcp.offered_tools import INFO, Named, call

REPLY = {"seats": {"action": "accept", "content": {"seats": 3}}}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, mcp_stdio=True, public_url="https://runs.example.com")


def failure(
    connections: Connections,
    client: McpClient,
    server: Server,
    replies: Replies,
    run_id: UUID | None = None,
) -> str:
    function = _caller(connections, client, server, "ask", "pinned")
    info = replace(INFO, run_id=str(run_id or new_id()), end_user_id="a", replies=replies)
    with pytest.raises(ToolFailed) as failed:
        function(StopSignal(), info, {})
    return str(failed.value)


def test_a_call_of_another_process_may_have_taken_effect(
    connections: Connections, server: Server
) -> None:
    """That process has ended with the call, and the access for its reply is refused."""
    refused = Replies({access.KEY: {"action": "cancel"}}, "null", "of another process")

    read = failure(connections, McpClient(), server, refused)

    assert f"The user has not authorized access to the server.{MAY_BE_DONE}" == read


@pytest.mark.processes
def test_a_held_call_ends_in_an_outage_of_the_database(
    offered: Callable[..., McpTools],
    named: Named,
    client: McpClient,
    settings: Settings,
    server: Server,
) -> None:
    """The access that its reply needs cannot be read."""
    named("odd")
    with pytest.raises(InputRequired) as asked:
        call(offered("odd").tools["ask"], n=1)
    held = asked.value.held
    assert held in client.held.runs
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    gone = connect(replace(settings, database_url=url), application="test")
    try:
        read = failure(gone, client, server, Replies(REPLY, "null", held))
    finally:
        gone.close()

    assert read.startswith("The database is unavailable") and read.endswith(MAY_BE_DONE)
    assert held not in client.held.runs


@pytest.mark.parametrize("held", [None, "call"])
def test_a_call_without_access_says_that_its_worker_ends(
    connections: Connections, server: Server, stored: StoredRuns, held: str | None
) -> None:
    """The call was not made, or its reply was not sent: the model may make it again."""
    client = McpClient()
    client.close()

    read = failure(connections, client, server, Replies(REPLY, "null", held), stored.create())

    if held is None:
        assert "Not called: The worker is shutting down." == read
    else:
        assert f"The worker is shutting down.{MAY_BE_DONE}" == read
