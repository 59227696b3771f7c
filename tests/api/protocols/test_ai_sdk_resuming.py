"""Chat UIs that were cut off, and what they resume."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from arkloop.api.protocols import projection
from arkloop.shared.claim import Claim
from arkloop.shared.events.types import (
    MessageCompleted,
    MessageDelta,
    MessageReset,
    RunInputReceived,
    ToolCallDelta,
    ToolCallRequested,
)
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims
from arkloop.shared.runs.states import ResultSource
from tests.api.protocols import ui_chats
from tests.api.protocols.ui_chats import message, post, run_of
from tests.clients import User, error_of
from tests.query_plans import noted
from tests.stored_runs import StoredRuns


@pytest.fixture
def runs(connections: Any, alice: User) -> StoredRuns:
    return StoredRuns.of(connections, alice)


def begin(alice: User, runs: StoredRuns, chat: str) -> Claim:
    """Send a message to the chat, and claim its run."""
    return runs.held(UUID(run_of(post(alice, message(), chat=chat))))


def ask(runs: StoredRuns, claim: Claim) -> tuple[UUID, str]:
    """Let the run ask its user; returns the ids of the request and of the call in the chat."""
    request_id = new_id()
    at_end = replace(claim, last_seq=runs.last_seq(claim.run_id))
    assert runs.park(at_end, request_id, tool_call_id=str(request_id))
    return request_id, f"{claim.run_id.hex}.{request_id}"


def reply(runs: StoredRuns, run_id: UUID, request_id: UUID, content: str) -> Claim:
    """Answer the run's question, and claim it again."""
    runs.answer(run_id, content, request_id)
    claim = runs.held(run_id)
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


def test_text_before_a_reset_is_kept_once(alice: User, runs: StoredRuns) -> None:
    """The chunks that a negative `startIndex` counts are not those of the stream."""
    chat = ui_chats.new_id()
    claim = begin(alice, runs, chat)
    say(runs, claim, "Keep this. ", "Drop this.")
    stream = alice.get(f"/v1/ui/chat/{chat}/stream?startIndex=-1", buffered=False)
    runs.write(claim, MessageReset(runs.last_seq(claim.run_id), "agent"))
    assert runs.finish(claim)

    assert "Drop this.Keep this. " == text_of(chunks_of(stream))


def test_chunks_are_counted_page_by_page(
    alice: User, runs: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is not to hold all events of a very long run for a negative `startIndex`."""
    monkeypatch.setattr(projection, "_PAGE_EVENTS", 2)
    chat = ui_chats.new_id()
    claim = begin(alice, runs, chat)
    say(runs, claim, *"abcd")
    assert runs.finish(claim)
    whole = chunks_of(alice.get(f"/v1/ui/chat/{chat}/stream?startIndex=0"))
    while_folding = ui_chats.lent_while_folding(monkeypatch, runs.connections)

    with noted(runs.connections) as statements:
        response = alice.get(f"/v1/ui/chat/{chat}/stream?startIndex=-3")

    assert whole[-3:] == chunks_of(response)
    assert str(len(whole) - 1) == response.headers["x-workflow-stream-tail-index"]
    assert {0} == set(while_folding)
    pages = [sql for sql, _ in statements if "run_events.seq >" in sql]
    assert len(pages) > 2
    assert all("LIMIT" in sql for sql in pages)


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


def test_a_call_with_streamed_arguments_is_one_chunk(alice: User, runs: StoredRuns) -> None:
    """A page cut off at the older release resumes before the chunk that hands it the call."""
    chat = ui_chats.new_id()
    claim = begin(alice, runs, chat)
    call: dict[str, Any] = {"tool_call_id": "c", "name": "locate", "arguments": {}}
    runs.write(
        claim,
        ToolCallDelta("c", "locate", "{}"),
        MessageCompleted(str(new_id()), "", Usage()),
        ToolCallRequested(**call, result_from="client"),
        ToolCallRequested("s", "calculator", {"expression": "6*7"}),
    )
    at_end = replace(claim, last_seq=runs.last_seq(claim.run_id))
    assert runs.park(at_end, new_id(), kind="tool_results", calls=[call])

    [handed, *_] = chunks_of(alice.get(f"/v1/ui/chat/{claim.run_id}/stream?startIndex=6"))
    assert ("tool-input-available", f"{claim.run_id.hex}.c", False) == (
        handed["type"],
        handed.get("toolCallId"),
        handed.get("providerExecuted"),
    )


def output(run_id: UUID, *outputs: tuple[str, str | None]) -> dict[str, Any]:
    """Return an assistant message with these calls, of which one without an output is open."""
    parts = []
    for call_id, text in outputs:
        state = "input-available" if text is None else "output-available"
        part = {"type": "tool-ask_user", "toolCallId": call_id, "state": state}
        parts.append(part if text is None else {**part, "output": text})
    return {"id": str(run_id), "role": "assistant", "parts": parts}


def test_an_answer_that_is_sent_again_shows_what_was_asked_after_it(
    alice: User, runs: StoredRuns
) -> None:
    """Its response was lost, or it comes from a second page, which has the same answer."""
    chat = ui_chats.new_id()
    claim = begin(alice, runs, chat)
    run_id = claim.run_id
    first, first_call = ask(runs, claim)
    again = reply(runs, run_id, first, "yes")
    say(runs, again, "A", "B")
    second, second_call = ask(runs, again)

    sent = post(alice, output(run_id, (first_call, "yes")), chat=chat)
    assert f"{run_id}.1" == sent.headers["x-workflow-run-id"]
    chunks = chunks_of(sent)
    assert ("AB", "waiting_for_input") == (text_of(chunks), status_of(chunks))
    assert second_call in [chunk.get("toolCallId") for chunk in chunks]
    refused = post(alice, output(run_id, (first_call, "no")), chat=chat)
    assert (409, "input.stale") == error_of(refused)
    # A page that has seen the second question would have the text twice.
    refused = post(alice, output(run_id, (first_call, "yes"), (second_call, None)), chat=chat)
    assert (409, "runs.not_waiting") == error_of(refused)

    at_end = reply(runs, run_id, second, "no")
    say(runs, at_end, "C")
    assert runs.finish(at_end)
    for answers, text in [([(first_call, "yes")], "ABC"), ([(second_call, "no")], "C")]:
        chunks = chunks_of(post(alice, output(run_id, *answers), chat=chat))
        assert (text, "completed") == (text_of(chunks), status_of(chunks))


@pytest.mark.parametrize("kind", ["tool_confirmation", "tool_results"])
def test_approvals_and_results_that_are_sent_again_are_those_of_their_wait(
    alice: User, runs: StoredRuns, kind: str
) -> None:
    """The run asks for something else by now."""
    chat, request_id = ui_chats.new_id(), new_id()
    claim = begin(alice, runs, chat)
    run_id = claim.run_id
    with runs.connections.transaction() as tx:
        claims.begin_tool_call(tx, claim, "1", ResultSource.CLIENT)
    runs.write(claim, ToolCallRequested("1", "locate", {}))
    asked: dict[str, Any] = {
        "tool_call_id": "1",
        "calls": [{"tool_call_id": "1", "name": "x", "arguments": {}}],
    }
    at_end = replace(claim, last_seq=runs.last_seq(run_id))
    assert runs.park(at_end, request_id, kind=kind, **asked)
    [sent] = output(run_id, (f"{run_id.hex}.1", "Rome"))["parts"]
    other = {**sent, "output": "Paris"}
    if kind == "tool_confirmation":
        reply = {"id": str(request_id), "approved": True}
        sent, other = ({**sent, "approval": {**reply, "approved": yes}} for yes in (True, False))

    def give(part: dict[str, Any]) -> TestResponse:
        return post(alice, {"id": str(run_id), "role": "assistant", "parts": [part]}, chat=chat)

    assert f"{run_id}.1" == run_of(give(sent))
    again = runs.held(run_id)
    ask(runs, again)
    assert f"{run_id}.1" == run_of(give(sent))
    assert 409 == give(other).status_code


@pytest.mark.parametrize("kind", ["question", "tool_confirmation", "tool_results"])
def test_a_page_catches_up_with_what_others_have_answered(
    alice: User, runs: StoredRuns, kind: str
) -> None:
    """It names the call that it shows as open, for which the run waits no more."""
    chat, request_id = ui_chats.new_id(), new_id()
    claim = begin(alice, runs, chat)
    run_id = claim.run_id
    with runs.connections.transaction() as tx:
        claims.begin_tool_call(tx, claim, "1", ResultSource.CLIENT)
    runs.write(claim, ToolCallRequested("1", "locate", {}))
    asked: dict[str, Any] = {"tool_call_id": "1"}
    if kind == "tool_results":
        asked = {"calls": [{"tool_call_id": "1", "name": "locate", "arguments": {}}]}
    at_end = replace(claim, last_seq=runs.last_seq(run_id))
    assert runs.park(at_end, request_id, kind=kind, **asked)
    shown = {"question": f"{run_id.hex}.{request_id}", "tool_confirmation": request_id}
    seen = f"/v1/ui/chat/{chat}/stream?seen={run_id}"
    with_call = f"{seen}.{shown.get(kind, f'{run_id.hex}.1')}"

    assert [204, 204] == [alice.get(path).status_code for path in (seen, with_call)]
    replied = {"state": "queued", "pending_input": None, "input_expires_at": None}
    runs.set(run_id, **replied)
    ask(runs, runs.held(run_id))
    assert 204 == alice.get(seen).status_code
    assert "waiting_for_input" == status_of(chunks_of(alice.get(with_call)))
    runs.set(run_id, **replied)
    assert runs.finish(runs.held(run_id))
    assert 204 == alice.get(seen).status_code
    assert "completed" == status_of(chunks_of(alice.get(with_call)))
