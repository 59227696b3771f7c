"""Messages of a chat that were sent by another protocol."""

from tests.api.protocols.said import with_earlier_lines
from tests.api.protocols.ui_chats import shown
from tests.clients import User
from tests.stored_runs import StoredRuns


def test_a_message_is_shown_without_the_lines_that_the_server_put_there(
    alice: User, stored: StoredRuns
) -> None:
    """They are for the model; lines that the author has written are shown."""
    thread = alice.post("/v1/threads", {"external_id": "chat-7"}).json or {}
    with_earlier_lines(alice, stored, thread["id"])

    said = [one["parts"] for one in shown(alice, "chat-7") if one["role"] == "user"]

    assert ["Hi!", "Hm?"] == [parts[-1]["text"] for parts in said[1:]]
    assert [1, 1, 2] == [len(parts) for parts in said]
    assert said[0][0]["text"].endswith("\n\nI am Ann.")
    assert "User: Hm." in said[0][0]["text"]
