"""Chat UIs that were cut off, and what they resume."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from arkloop.shared.claim import Claim
from arkloop.shared.events.types import MessageDelta, RunInputReceived
from arkloop.shared.ids import new_id
from tests.api.protocols import ui_chats
from tests.api.protocols.ui_chats import message, post, run_of
from tests.clients import User
from tests.stored_runs import StoredRuns


@pytest.fixture
def runs(connections: Any, alice: User) -> StoredRuns:
    return StoredRuns.of(connections, alice)


def begin(alice: User, runs: StoredRuns, chat: str) -> Claim:
    """Send a message to the chat, and claim its run."""
    claim = runs.claim(UUID(run_of(post(alice, message(), chat=chat))))
    assert claim is not None
    return claim


def ask(runs: StoredRuns, claim: Claim) -> tuple[UUID, str]:
    """Let the run ask its user; returns the ids of the request and of the call in the chat."""
    request_id = new_id()
    at_end = replace(claim, last_seq=runs.last_seq(claim.run_id))
    assert runs.park(at_end, request_id, tool_call_id=str(request_id))
    return request_id, f"{claim.run_id.hex}.{request_id}"


def reply(runs: StoredRuns, run_id: UUID, request_id: UUID, content: str) -> Claim:
    """Answer the run's question, and claim it again."""
    runs.answer(run_id, content, request_id)
    claim = runs.claim(run_id)
    assert claim is not None
    runs.write(claim, RunInputReceived(str(request_id), content))
    return claim


def say(runs: StoredRuns, claim: Claim, *words: str) -> None:
    for word in words:
        runs.write(claim, MessageDelta(word))


def chunks_of(response: TestResponse) -> list[dict[str, Any]]:
    assert 200 == response.status_code, response.text
    lines = response.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")


def status_of(chunks: list[dict[str, Any]]) -> str:
    assert "finish" == chunks[-1]["type"]
    return str(chunks[-1]["messageMetadata"]["arkloop"]["status"])


def test_chunks_of_another_run_are_not_resumed(alice: User, runs: StoredRuns) -> None:
    """`WorkflowChatTransport` names the chat, of which another run may be the newest by now: it
    would try again without end, or append the text of the one to that of the other.
    """
    chat = ui_chats.new_id()
    first = begin(alice, runs, chat)
    say(runs, first, *"abcdefgh")
    stream = f"/v1/ui/chat/{chat}/stream?startIndex="
    assert runs.finish(first)
    count = len(chunks_of(alice.get(f"{stream}0")))
    second = begin(alice, runs, chat)

    say(runs, second, "A", "B")
    while_active = chunks_of(alice.get(f"{stream}{count - 1}"))
    assert runs.finish(second)
    whole = chunks_of(alice.get(f"{stream}0"))
    at_end = chunks_of(alice.get(f"{stream}{len(whole)}"))

    assert "AB" == text_of(whole)
    for chunks in (while_active, at_end):
        assert ["error", "finish"] == [chunk["type"] for chunk in chunks]


def test_a_response_that_passes_waits_is_resumed_as_it_was(alice: User, runs: StoredRuns) -> None:
    """A steered run may have asked before, and a chat that is followed may have been answered."""
    chat = ui_chats.new_id()
    asked = begin(alice, runs, chat)
    request_id, _ = ask(runs, asked)
    again = reply(runs, asked.run_id, request_id, "yes")
    say(runs, again, "A", "B")

    steered = post(alice, message("Hurry"), chat=chat, on_busy="steer")
    followed = alice.get(f"/v1/ui/chat/{chat}/stream", buffered=False)
    named = run_of(steered)
    assert named == run_of(followed)
    whole = f"/v1/ui/chat/{named}/stream"
    response = alice.get(whole, buffered=False)
    assert named == response.headers["x-workflow-run-id"]
    ask(runs, again)

    chunks = chunks_of(response)
    assert ("AB", "waiting_for_input") == (text_of(chunks), status_of(chunks))
    assert chunks[6:] == chunks_of(alice.get(f"{whole}?startIndex=6"))
    # By the run's id, a response ends at the first wait.
    assert "" == text_of(chunks_of(alice.get(f"/v1/ui/chat/{asked.run_id}/stream")))
