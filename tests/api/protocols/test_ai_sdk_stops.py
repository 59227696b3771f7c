"""The stop of a chat: what it cancels, and what its response says."""

from uuid import UUID

import pytest

from arkloop.shared.runs.states import RunState
from tests.api.protocols.ui_chats import message, new_id, post, run_of
from tests.clients import User
from tests.stored_runs import StoredRuns


def stop(user: User, chat: str) -> dict[str, bool]:
    """Stop a chat, and return whether a run was cancelled."""
    return dict(user.post(f"/v1/ui/chat/{chat}/stop").json)


@pytest.mark.parametrize("is_claimed", [False, True])
def test_a_stop_says_whether_it_cancelled_a_run(
    alice: User, stored: StoredRuns, is_claimed: bool
) -> None:
    """A stop that came before its message has ended nothing: the page sends it again."""
    chat = new_id()
    before = stop(alice, chat)
    run_id = UUID(run_of(post(alice, message(), chat=chat)))
    claim = stored.claim(run_id) if is_claimed else None
    stopped = stop(alice, chat)
    if claim is not None:
        assert stored.row(run_id)["cancel_requested_by"] == stored.actor.user_id
        assert stored.finish(claim, RunState.CANCELLED)
    else:
        assert "cancelled" == stored.state(run_id)
    after = stop(alice, chat)

    assert {"ok": True, "stopped": True} == stopped
    assert {"ok": True, "stopped": False} == before == after
