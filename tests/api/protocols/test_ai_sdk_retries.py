"""Chats whose runs the retention has deleted: what they show, and answers generated again."""

from typing import Any
from uuid import UUID

from sqlalchemy import delete

from arkloop.shared.ids import new_id as new_uuid
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import runs
from tests.api.protocols.ui_chats import message, new_id, post, run_of, shown
from tests.clients import User, error_of
from tests.end_users import end_user
from tests.stored_runs import StoredRuns

AGAIN = {"trigger": "regenerate-message"}


def answered_long_ago(user: User, stored: StoredRuns, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Make a chat whose message was answered by a run that is deleted; returns both."""
    chat, said = new_id(), message()
    run_id = UUID(run_of(post(user, said, chat=chat, **fields)))
    claim = stored.held(run_id)
    assert stored.finish(claim, message=(new_uuid(), "The answer"))
    forget(stored.connections, run_id)
    return chat, said


def forget(connections: Connections, run_id: UUID) -> None:
    with connections.transaction() as tx:
        tx.sql.execute(delete(runs).where(runs.c.id == run_id))


def test_a_persona_of_which_nothing_is_stored_is_not_replaced(
    alice: User, stored: StoredRuns
) -> None:
    """The chat keeps its answer; the default persona would be another one than before."""
    chat, said = answered_long_ago(alice, stored, persona_id="plain")
    [thread] = alice.get(f"/v1/threads?external_id={chat}").json or []

    refused = [
        post(alice, said, chat=chat, **AGAIN),
        alice.post(f"/v1/threads/{thread['id']}:retry"),
    ]

    assert [(409, "runs.last_run_deleted")] * 2 == [error_of(one) for one in refused]
    left = alice.get(f"/v1/threads/{thread['id']}/messages").json or []
    assert ["Hello", "The answer"] == [one["content"] for one in left]


def test_an_answer_stays_in_the_chat_when_its_run_is_deleted(
    alice: User, stored: StoredRuns
) -> None:
    """Its text is all that is stored of it; a page loads both messages."""
    chat, said = answered_long_ago(alice, stored)

    assert said == shown(alice, chat)[0]
    [_, answer] = shown(alice, chat)
    text = {"type": "text", "text": "The answer", "state": "done"}
    assert ("assistant", [{"type": "step-start"}, text]) == (answer["role"], answer["parts"])


def test_the_request_s_persona_counts_where_no_run_has_one(alice: User, stored: StoredRuns) -> None:
    """Its overrides and metadata count with it, and those of a stored run before them."""
    fields = {"persona_id": "plain", "metadata": {"team": "red"}}
    chat, said = answered_long_ago(alice, stored, **fields)

    again = UUID(run_of(post(alice, said, chat=chat, **fields, **AGAIN)))

    row = stored.row(again)
    assert ("plain@1", {"team": "red"}) == (row["persona_id"], row["metadata"])
    assert [said] == shown(alice, chat)
    stored.cancel(again)
    other = {"persona_id": "assistant", "metadata": {"team": "blue"}}
    last = stored.row(UUID(run_of(post(alice, said, chat=chat, **other, **AGAIN))))
    assert ("plain@1", {"team": "red"}) == (last["persona_id"], last["metadata"])


def test_a_client_token_has_its_persona_and_no_other(alice: User, stored: StoredRuns) -> None:
    """The page need not name it, and cannot name another one."""
    ann = end_user(alice, persona_id="plain")
    chat, said = answered_long_ago(ann, stored)

    refused = post(ann, said, chat=chat, persona_id="assistant", **AGAIN)
    again = run_of(post(ann, said, chat=chat, **AGAIN))

    assert (403, "auth.forbidden") == error_of(refused)
    assert "plain@1" == stored.row(UUID(again))["persona_id"]
