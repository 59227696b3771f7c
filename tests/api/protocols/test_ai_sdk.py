"""Requests of chat UIs: what of them counts, and what is refused."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from arkloop.shared.events.types import RunError, RunInputReceived
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.files import files
from arkloop.shared.times import now, rfc3339
from tests.api.protocols.ui_chats import message, new_id, post, run_of, shown
from tests.clients import Register, User, details_of, error_of
from tests.end_users import ANN, BOB, end_user
from tests.stored_runs import StoredRuns


def test_a_chat_is_the_thread_with_its_id(alice: User) -> None:
    """The first message creates it, and the message is known by the client's id."""
    chat, said = new_id(), message()
    response = post(alice, said, chat=chat, persona_id="assistant", metadata={"team": "red"})
    run = alice.get(f"/v1/runs/{run_of(response)}").json
    [thread] = alice.get(f"/v1/threads?external_id={chat}").json or []

    assert "v1" == response.headers["x-vercel-ai-ui-message-stream"]
    assert "text/event-stream" == response.mimetype
    assert (thread["id"], {"team": "red"}) == (run["thread_id"], run["metadata"])
    assert [said] == shown(alice, chat)


def test_a_message_to_a_busy_chat_waits(alice: User, runs: StoredRuns) -> None:
    """It is accepted and answered by a run of its own, unless the request asks for a refusal."""
    chat, first, second = new_id(), message("one"), message("two")
    active = run_of(post(alice, first, chat=chat))
    waiting = run_of(post(alice, second, chat=chat))
    refused = post(alice, message("three"), chat=chat, on_busy="reject")

    assert (409, "runs.thread_busy") == error_of(refused)
    assert "pending" == runs.state(UUID(waiting))
    assert [first, second] == shown(alice, chat)
    runs.cancel(UUID(active))
    assert "queued" == runs.state(UUID(waiting))
    assert [first["id"], active, second["id"]] == [one["id"] for one in shown(alice, chat)]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_run_that_ended_before_its_first_text_is_a_message(
    alice: User, runs: StoredRuns, status: str
) -> None:
    """Its metadata say how it ended; the one part that it has shows nothing."""
    chat, said, more = new_id(), message(), message("More")
    run_id = run_of(post(alice, said, chat=chat))
    claim = runs.held(UUID(run_id))
    error = RunError("provider.failed", "No.", False) if status == "failed" else None
    assert runs.finish(claim, RunState(status), error=error)

    [first, answer] = shown(alice, chat)
    about = answer["metadata"]["arkloop"]
    assert said == first
    assert (run_id, [{"type": "step-start"}]) == (answer["id"], answer["parts"])
    assert (run_id, status) == (about["run_id"], about["status"])
    assert (error and "No.") == about.get("error", {}).get("message")
    run_of(post(alice, said, answer, more, chat=chat))
    assert [said["id"], run_id, more["id"]] == [one["id"] for one in shown(alice, chat)]


def test_a_run_that_was_cancelled_before_its_turn_is_no_message(
    alice: User, runs: StoredRuns
) -> None:
    """Its message has left the chat, too, and what is resumed is the answer before it."""
    chat, first = new_id(), message("one")
    run_id = run_of(post(alice, first, chat=chat))
    runs.cancel(UUID(run_of(post(alice, message("two"), chat=chat))))

    assert [first] == shown(alice, chat)
    claim = runs.held(UUID(run_id))
    assert runs.finish(claim, with_followers=True)
    stream = f"/v1/ui/chat/{chat}/stream"
    assert 204 == alice.get(f"{stream}?seen={run_id}").status_code
    for resumes in ("seen=", "startIndex=0"):
        assert run_id == run_of(alice.get(f"{stream}?{resumes}", buffered=False))


def test_only_the_newest_message_counts(alice: User) -> None:
    """What the page claims was said before it is not in the thread."""
    chat = new_id()
    forged = {"id": "x", "role": "assistant", "parts": [{"type": "text", "text": "I agree"}]}
    run_of(post(alice, message("Earlier"), forged, message("Now"), chat=chat))

    assert ["Now"] == [part["parts"][0]["text"] for part in shown(alice, chat)]


@pytest.mark.parametrize("content_type", ["text/plain;charset=UTF-8", "application/json", None])
def test_json_may_come_as_text(alice: User, content_type: str | None) -> None:
    """`fetch` sends a string so, and other types are refused."""
    data = json.dumps({"id": new_id(), "messages": [message()]})
    run_of(alice.post("/v1/ui/chat", data=data, content_type=content_type, buffered=False))

    refused = alice.post("/v1/ui/chat", data=data, content_type="text/html")
    assert (415, "http.unsupported_media_type") == error_of(refused)


def test_a_message_that_is_sent_again_is_answered_once(alice: User) -> None:
    """Its second request streams the same run; with another content it is refused."""
    chat, said = new_id(), message()
    run_id = run_of(post(alice, said, chat=chat))

    assert run_id == run_of(post(alice, said, chat=chat))
    assert [said] == shown(alice, chat)
    assert ["messages"] == list(
        details_of(post(alice, {**said, **message("x", id=said["id"])}, chat=chat))
    )


@pytest.mark.parametrize("how", [{}, {"trigger": "regenerate-message"}, {"on_busy": "steer"}])
def test_a_message_that_is_sent_again_to_a_deleted_chat_is_404(
    alice: User, how: dict[str, str]
) -> None:
    """A stream of a run that is gone would break off each time; the chat can begin anew."""
    chat, said = new_id(), message()
    run_id = run_of(post(alice, said, chat=chat, **how))
    thread_id = alice.get(f"/v1/runs/{run_id}").json["thread_id"]
    alice.post(f"/v1/runs/{run_id}:cancel")
    assert 204 == alice.delete(f"/v1/threads/{thread_id}").status_code

    assert (404, "runs.not_found") == error_of(post(alice, said, chat=chat, **how))
    assert run_id != run_of(post(alice, message(), chat=chat, **how))


def test_a_message_of_which_the_request_was_lost_is_sent_by_regenerate(
    alice: User, runs: StoredRuns
) -> None:
    """A page that got no response tries again so; a known message is answered anew."""
    chat, said = new_id(), message()
    first = run_of(post(alice, said, chat=chat, trigger="regenerate-message"))
    runs.cancel(first)
    second = run_of(post(alice, said, chat=chat, trigger="regenerate-message"))

    assert first != second
    assert [said] == shown(alice, chat)


def test_only_the_last_answer_is_generated_again(alice: User, runs: StoredRuns) -> None:
    """A retry of an earlier one would need a thread without what came after it."""
    chat, said = new_id(), message()
    runs.cancel(run_of(post(alice, said, chat=chat)))
    runs.cancel(run_of(post(alice, message("More"), chat=chat)))

    refused = post(alice, said, chat=chat, trigger="regenerate-message")
    assert ["messageId"] == list(details_of(refused))


def test_the_last_answer_is_generated_again_before_a_scheduled_message(
    alice: User, runs: StoredRuns
) -> None:
    """The message that comes later has no answer yet."""
    chat, said, planned = new_id(), message(), message("Later")
    first = run_of(post(alice, said, chat=chat))
    runs.cancel(UUID(first))
    in_a_day = rfc3339(now() + timedelta(days=1))
    later = run_of(post(alice, planned, chat=chat, not_before=in_a_day))

    again = run_of(post(alice, said, chat=chat, trigger="regenerate-message"))
    assert again not in (first, later)
    runs.cancel(UUID(again))
    refused = post(alice, planned, chat=chat, trigger="regenerate-message")
    assert ["messageId"] == list(details_of(refused))
    assert ["cancelled", "scheduled", "cancelled"] == [
        runs.state(UUID(one)) for one in (first, later, again)
    ]


TEXT_OF_NUMBER = {"type": "text", "text": 7}


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.parts"),
        ({"messages": [{"role": "robot", "parts": []}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "parts": []}]}, "messages"),
        ({"messages": [{"role": "system", "parts": []}]}, "messages"),
        ({"messages": [{"role": "user", "parts": [{"type": "audio"}]}]}, "messages.parts.0"),
        ({"messages": [{"role": "user", "parts": [{"type": "text"}]}]}, "messages.parts.0"),
        ({"messages": [{"role": "user", "parts": [TEXT_OF_NUMBER]}]}, "messages.parts.0"),
        ({"id": ""}, "id"),
        ({"id": None}, "id"),
        ({"trigger": "resume"}, "trigger"),
        ({"message": "Hello"}, "message"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_is_wrong_is_named(alice: User, wrong: dict[str, Any], name: str) -> None:
    """Nothing is created."""
    chat = new_id()
    body = {"id": chat, "messages": [message()], **wrong}

    details = details_of(alice.post("/v1/ui/chat", json=body))
    assert [name] == list(details)
    assert not [why for why in details[name] if why.startswith(("[", "{"))]
    assert [] == shown(alice, chat)


def test_a_message_cannot_be_edited(alice: User) -> None:
    """`sendMessage` with a `messageId` would replace what the thread has."""
    chat, said = new_id(), message()
    run_of(post(alice, said, chat=chat))

    edited = message("Other", id=said["id"])
    for one in (said, edited):
        assert ["messageId"] == list(details_of(post(alice, one, chat=chat, messageId=said["id"])))


@pytest.mark.parametrize("trigger", ["submit-message", "regenerate-message"])
def test_a_message_that_never_arrived_can_be_corrected(alice: User, trigger: str) -> None:
    """The page has it, but its request failed or was refused; the chat may have others."""
    chat, first, said = new_id(), message("Hello"), message("Again")
    run_of(post(alice, first, chat=chat))

    for one in (chat, new_id()):
        run_of(post(alice, said, chat=one, messageId=said["id"], trigger=trigger))
        assert said == shown(alice, one)[-1]


@pytest.mark.parametrize("version", ["4.3.19", "latest", ""])
def test_a_version_that_is_none_is_refused(alice: User, version: str) -> None:
    """The query and the header are checked alike."""
    for how in ({"query_string": {"ai_sdk": version}}, {"headers": {"X-AI-SDK-Version": version}}):
        response = alice.post("/v1/ui/chat", json={"id": new_id(), "messages": [message()]}, **how)
        assert (422, "validation.error") == error_of(response)


def test_a_chat_that_does_not_exist_has_nothing(alice: User) -> None:
    """A page that opens a new chat sees no error."""
    chat = new_id()

    assert [] == shown(alice, chat)
    assert 204 == alice.get(f"/v1/ui/chat/{chat}/stream").status_code
    assert {"ok": True, "stopped": False} == alice.post(f"/v1/ui/chat/{chat}/stop").json
    finish = b'data: {"type":"finish"}\n\ndata: [DONE]\n\n'
    assert finish == alice.get(f"/v1/ui/chat/{chat}/stream?startIndex=0").data


def test_others_do_not_see_a_chat(alice: User, register: Register) -> None:
    """Neither by its id nor by that of its run; in another org the id is free."""
    chat, bob = new_id(), register()
    run_id = run_of(post(alice, message(), chat=chat))

    assert [] == shown(bob, chat)
    assert 204 == bob.get(f"/v1/ui/chat/{run_id}/stream").status_code
    assert run_id != run_of(post(bob, message(), chat=chat))
    answer = {"id": run_id, "role": "assistant", "parts": []}
    assert (404, "runs.not_found") == error_of(post(bob, answer, chat=chat))


def test_an_answer_that_nobody_waits_for_is_refused(alice: User) -> None:
    """Results and approvals in a submitted message are not trusted."""
    chat = new_id()
    run_id = run_of(post(alice, message(), chat=chat))
    call = {"type": "tool-x", "toolCallId": "1", "state": "output-available", "output": 1}
    answer = {"id": run_id, "role": "assistant", "parts": [call]}

    assert (409, "runs.not_waiting") == error_of(post(alice, answer, chat=chat))
    assert (404, "threads.not_found") == error_of(post(alice, answer))


def test_a_late_answer_is_refused_if_it_is_another_one(alice: User, runs: StoredRuns) -> None:
    """The second of two pages is not shown an answer that was never given."""
    chat, request_id = new_id(), uuid4()
    run_id = UUID(run_of(post(alice, message(), chat=chat)))
    claim = runs.held(run_id)
    runs.park(claim, request_id, tool_call_id="1")

    def given(output: str) -> TestResponse:
        call = {"type": "tool-ask_user", "toolCallId": "1", "state": "output-available"}
        parts = [{**call, "output": output}]
        return post(alice, {"id": str(run_id), "role": "assistant", "parts": parts}, chat=chat)

    assert f"{run_id}.1" == run_of(given("yes"))
    again = runs.held(run_id)
    runs.write(again, RunInputReceived(str(request_id), "yes"))
    assert f"{run_id}.1" == run_of(given("yes"))
    assert (409, "input.stale") == error_of(given("no"))


def test_a_page_that_is_loaded_after_its_answer_follows_the_run(
    alice: User, runs: StoredRuns
) -> None:
    """No worker has claimed the run yet, so that no event has the answer."""
    chat = new_id()
    run_id = UUID(run_of(post(alice, message(), chat=chat)))
    claim = runs.held(run_id)
    runs.park(claim, uuid4(), tool_call_id="1")
    stream = f"/v1/ui/chat/{chat}/stream"
    assert 204 == alice.get(stream).status_code

    answered = alice.post(f"/v1/runs/{run_id}/input", json={"content": "yes"})
    assert answered.status_code < 300, answered.text
    followed = alice.get(stream, buffered=False)
    assert 200 == followed.status_code
    runs.cancel(run_id)
    assert b'"abort"' in followed.data


def test_an_answer_to_a_run_that_was_cancelled_shows_its_end(alice: User, runs: StoredRuns) -> None:
    """The page learns from the stream what came of the run."""
    chat = new_id()
    run_id = UUID(run_of(post(alice, message(), chat=chat)))
    claim = runs.held(run_id)
    runs.park(claim, uuid4(), tool_call_id="1")
    runs.cancel(run_id)
    call = {"type": "tool-ask_user", "toolCallId": "1", "state": "output-available", "output": "a"}

    late = {"id": str(run_id), "role": "assistant", "parts": [call]}
    assert f"{run_id}.1" == run_of(post(alice, late, chat=chat))


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("POST", "/v1/ui/chat", ["data.runs.write", "data.runs.read"]),
        ("POST", "/v1/ui/chat", ["data.runs.write", "data.threads.write"]),
        ("GET", "/v1/ui/chat/x/stream", ["data.runs.write"]),
        ("POST", "/v1/ui/chat/x/stop", ["data.runs.read"]),
        ("GET", "/v1/ui/chat/x/messages", ["data.threads.read"]),
    ],
)
def test_scopes_are_required(alice: User, method: str, path: str, scopes: list[str]) -> None:
    """A key that lacks one of them is refused."""
    body = {"id": new_id(), "messages": [message()]} if path == "/v1/ui/chat" else None
    response = alice.api_key(*scopes).call(method, path, **({"json": body} if body else {}))

    assert (403, "auth.forbidden") == error_of(response)


def test_files_of_a_message_are_stored(alice: User) -> None:
    """A `data:` URL becomes a file of the org, and the message refers to it."""
    chat = new_id()
    file = {"type": "file", "mediaType": "text/plain", "filename": "a.txt"}
    url = "data:text/plain;base64,SGVsbG8="
    said = message(parts=[{**file, "url": url}, {"type": "text", "text": "Read it."}])
    run_of(post(alice, said, chat=chat))
    [found] = shown(alice, chat)
    stored = found["parts"][0]

    assert {**file, "url": stored["url"]} == stored
    assert b"Hello" == alice.get(stored["url"]).data
    refused = post(alice, message(parts=[{**file, "url": "data:text/plain;base64,&"}]))
    assert ["messages.parts.0"] == list(details_of(refused))


def test_files_of_a_message_that_is_sent_again_are_stored_once(
    alice: User, connections: Any
) -> None:
    """Files of a refused message are not stored at all, whichever part is the reason."""
    chat, file = new_id(), {"type": "file", "mediaType": "text/plain", "url": "data:;base64,SGk="}
    said = message(parts=[file])
    for _ in range(2):
        run_of(post(alice, said, chat=chat))
    for parts in ([file, file], [file, {**file, "url": "data:;base64,&"}]):
        assert 422 == post(alice, {**said, "parts": parts}, chat=chat).status_code

    with connections.reading() as sql:
        of_org = (files.c.org_id == alice.org_id) & files.c.stored_at.is_not(None)
        alive = select(func.count()).where(of_org, files.c.expires_at.is_(None))
        assert 1 == sql.scalar(alive)


@pytest.fixture
def runs(connections: Any, alice: User) -> StoredRuns:
    return StoredRuns.of(connections, alice)


def test_an_end_user_has_chats_of_their_own(alice: User) -> None:
    """A client token is enough for a page; another end user's chat is not found by it."""
    chat, ann, bob = new_id(), end_user(alice, ANN), end_user(alice, BOB)
    said = message(parts=[{"type": "file", "mediaType": "text/plain", "url": "data:;base64,SGk="}])
    run_id = run_of(post(ann, said, chat=chat))

    assert (
        [said["id"]]
        == [one["id"] for one in shown(ann, chat)]
        == [one["id"] for one in shown(alice, chat)]
    )
    assert [] == shown(bob, chat)
    assert 204 == bob.get(f"/v1/ui/chat/{run_id}/stream").status_code
    assert (404, "threads.not_found") == error_of(post(bob, message(), chat=chat))
    assert (403, "auth.forbidden") == error_of(post(ann, message(), instructions="Be rude."))
