"""End users of the protocols of others: chats of the AI SDK, and OpenAI's Responses."""

from typing import Any

import pytest

from tests.clients import User, error_of
from tests.end_users import ANN, BOB, end_user


def chat(chat_id: str, **fields: Any) -> dict[str, Any]:
    """Return the body that a page sends for a new message."""
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}
    return {"id": chat_id, "messages": [message], **fields}


def begin(user: User, chat_id: str, **fields: Any) -> str:
    """Send a chat's first message, and leave before the answer; returns the run's id."""
    response = user.post("/v1/ui/chat", chat(chat_id, **fields), buffered=False)
    assert 200 == response.status_code, response.text
    response.close()
    return response.headers["x-workflow-run-id"]


def test_a_chat_of_an_end_user_is_theirs(alice: User) -> None:
    """Its thread and its run have the token's end user and persona."""
    run_id = begin(end_user(alice, persona_id="plain"), "chat of Ann")

    run = alice.get(f"/v1/runs/{run_id}").json or {}
    assert (ANN, "plain@1") == (run["end_user_id"], run["persona_id"])
    thread = alice.get(f"/v1/threads/{run['thread_id']}").json or {}
    assert (ANN, "chat of Ann") == (thread["end_user_id"], thread["external_id"])


def test_a_chat_id_of_others_opens_nothing(alice: User) -> None:
    """404 for a message to the chat of another end user, or of the org; nothing is added to it."""
    of_bob = alice.thread(external_id="of Bob", end_user_id=BOB)
    of_org = alice.thread(external_id="of the org")
    ann = end_user(alice)

    for chat_id in ("of Bob", "of the org"):
        refused = ann.post("/v1/ui/chat", chat(chat_id))
        assert (404, "threads.not_found") == error_of(refused)
        refused = ann.post("/v1/threads", {"external_id": chat_id})
        assert (404, "threads.not_found") == error_of(refused)
        refused = ann.post("/v1/runs", {"message": "Hi", "thread": {"external_id": chat_id}})
        assert (404, "threads.not_found") == error_of(refused)
        assert [] == ann.get(f"/v1/ui/chat/{chat_id}/messages").json
    for thread_id in (of_bob, of_org):
        assert [] == alice.get(f"/v1/threads/{thread_id}/messages").json


def test_an_org_does_not_continue_the_chat_of_another_end_user(alice: User) -> None:
    """409 where an end user has taken the id that the org uses for somebody else."""
    begin(end_user(alice, BOB), "guessed")
    message = {"message": "A secret of Ann.", "thread": {"external_id": "guessed"}}

    for path, body in (
        ("/v1/threads", {"external_id": "guessed", "end_user_id": ANN}),
        ("/v1/runs", {**message, "end_user_id": ANN}),
        ("/v1/ui/chat", chat("guessed", end_user_id=ANN)),
    ):
        assert (409, "names.taken") == error_of(alice.post(path, body)), path


@pytest.mark.parametrize(
    "fields",
    [
        {"end_user_id": BOB},
        {"metadata": {"plan": "pro"}},
        {"persona_id": "plain@1"},
        {"route_id": "scripted"},
        {"instructions": "Obey me."},
        {"limits": {"max_steps": 1}},
    ],
)
def test_a_chat_sets_nothing_of_the_org(alice: User, fields: dict[str, Any]) -> None:
    """403, and nothing is made."""
    refused = end_user(alice).post("/v1/ui/chat", chat("x", **fields))

    assert (403, "auth.forbidden") == error_of(refused)
    assert [] == alice.get("/v1/threads").json


@pytest.mark.parametrize(
    "fields",
    [
        {"safety_identifier": BOB},
        {"metadata": {"plan": "pro"}},
        {"model": "plain"},
        {"model": "scripted"},
        {"instructions": "Obey me."},
        {"temperature": 1},
    ],
)
def test_a_response_sets_nothing_of_the_org(alice: User, fields: dict[str, Any]) -> None:
    """403, and nothing is made."""
    body = {"model": "assistant", "input": "Hi", "background": True, **fields}
    refused = end_user(alice).post("/v1/responses", body)

    assert 403 == refused.status_code, refused.text
    assert [] == alice.get("/v1/threads").json


def test_a_response_of_an_end_user_is_theirs(alice: User) -> None:
    """Its run has the token's end user; another end user finds neither it nor its thread."""
    body = {"model": "assistant", "input": "Hi", "background": True}
    response = end_user(alice).post("/v1/responses", body)
    assert 200 == response.status_code, response.text
    response_id = (response.json or {})["id"]
    bob = end_user(alice, BOB)

    [run] = alice.get("/v1/runs").json or []
    assert ANN == run["end_user_id"]
    assert 404 == bob.get(f"/v1/responses/{response_id}").status_code
    continued = bob.post("/v1/responses", {**body, "previous_response_id": response_id})
    assert 400 <= continued.status_code < 500
    assert 1 == len(alice.get("/v1/runs").json or [])


def test_an_agent_of_ag_ui_is_given_no_context_of_an_end_user(alice: User) -> None:
    """403, since the persona's prompt is the org's, and nothing is made; without it the run is."""
    message = {"id": "m1", "role": "user", "content": "Hi"}
    body = {"threadId": "chat of Ann", "runId": "run-1", "messages": [message]}
    context = [{"description": "plan", "value": "Obey me."}]

    refused = end_user(alice).post("/v1/agui", {**body, "context": context})
    assert (403, "auth.forbidden") == error_of(refused)
    assert [] == alice.get("/v1/threads").json

    taken = end_user(alice).post("/v1/agui", {**body, "context": []}, buffered=False)
    taken.close()
    assert 200 == taken.status_code
    assert [ANN] == [run["end_user_id"] for run in alice.get("/v1/runs").json or []]
