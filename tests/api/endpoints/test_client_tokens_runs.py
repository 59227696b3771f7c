"""Runs of an end user, beside those that the org creates in the same thread."""

import re
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.billing import credits
from arkloop.shared.ids import new_id as new_uuid
from arkloop.shared.storage.connections import Connections
from tests.api.protocols.ui_chats import message, new_id, post, run_of
from tests.clients import User, error_of
from tests.end_users import ANN, end_user
from tests.stored_runs import StoredRuns

OF_ORG = {"persona_id": "assistant", "metadata": {"may_refund": "500"}, "instructions": "Refund."}


def shown(user: User, run_id: str) -> tuple[Any, ...]:
    run = user.get(f"/v1/runs/{run_id}").json or {}
    return run["persona_id"], run["metadata"], run["overrides"]


def run_by_org(alice: User, stored: StoredRuns, thread_id: str) -> str:
    """Create a run with what end users may not give, and end it; returns its id."""
    made = alice.post(f"/v1/threads/{thread_id}/runs", {"message": "Hi", **OF_ORG})
    assert 201 == made.status_code, made.text
    run_id = str((made.json or {})["run_id"])
    claim = stored.claim(UUID(run_id))
    assert claim is not None
    assert stored.finish(claim, message=(new_uuid(), "Done"))
    return run_id


def test_a_retry_of_a_new_message_has_nothing_of_the_orgs_run(
    alice: User, stored: StoredRuns
) -> None:
    """The run has the token's persona alone: tools trust the metadata of what the org has run."""
    thread_id = alice.thread(end_user_id=ANN)
    run_by_org(alice, stored, thread_id)
    ann = end_user(alice, persona_id="plain")
    ann.say(thread_id, "Refund me 500.")

    made = ann.post(f"/v1/threads/{thread_id}:retry").json or {}

    assert ("plain@1", {}, None) == shown(alice, made["run_id"])
    assert ANN == (alice.get(f"/v1/runs/{made['run_id']}").json or {})["end_user_id"]


def test_a_retry_of_the_orgs_run_repeats_it(alice: User, stored: StoredRuns) -> None:
    """Without a new message the run is the same once more, and so it is for the org with one."""
    thread_id = alice.thread(end_user_id=ANN)
    first = run_by_org(alice, stored, thread_id)
    ann = end_user(alice, persona_id="plain")

    repeated = ann.post(f"/v1/threads/{thread_id}:retry").json or {}
    assert shown(alice, first) == shown(alice, repeated["run_id"])
    stored.cancel(UUID(repeated["run_id"]))
    ann.say(thread_id, "And now?")
    by_org = alice.post(f"/v1/threads/{thread_id}:retry").json or {}
    assert shown(alice, first) == shown(alice, by_org["run_id"])


def test_a_chat_that_is_generated_again_has_nothing_of_the_orgs_run(
    alice: User, stored: StoredRuns
) -> None:
    """A page's `regenerate-message` is a retry, too."""
    chat, said = new_id(), message()
    thread_id = alice.thread(end_user_id=ANN, external_id=chat)
    run_by_org(alice, stored, thread_id)
    ann = end_user(alice, persona_id="plain")
    ann.say(thread_id, "Refund me 500.")
    del said["id"]

    again = run_of(post(ann, said, chat=chat, trigger="regenerate-message"))

    assert ("plain@1", {}, None) == shown(alice, again)


@pytest.mark.parametrize(("metadata", "is_merged"), [({}, True), ({"may_refund": "500"}, False)])
def test_a_message_joins_no_run_with_metadata_of_the_org(
    alice: User, metadata: dict[str, str], is_merged: bool
) -> None:
    """The org's waiting run may be like that of the end user in all else."""
    thread_id = alice.thread(end_user_id=ANN)
    path = f"/v1/threads/{thread_id}/runs"
    alice.post(path, {"message": "Hi"})
    waiting = alice.post(path, {"message": "And?", "on_busy": "enqueue", "metadata": metadata})

    made = end_user(alice).post(path, {"message": "Refund me 500.", "on_busy": "merge"}).json or {}

    assert is_merged == (made["run_id"] == (waiting.json or {})["run_id"])
    assert is_merged == ("is_merged" in made["queue"])


@pytest.mark.parametrize("persona_id", ["desk", "desk@1", "missing", "missing@7", "plain@1"])
@pytest.mark.parametrize("path", ["/v1/runs", "/v1/ui/chat", "/v1/agui", "/v1/responses"])
def test_an_end_user_learns_nothing_about_other_personas(
    alice: User, path: str, persona_id: str
) -> None:
    """The same 403 for all of them: which exist, which variables and which tools they have."""
    prompt = "Flag {{risk}} of {{account}}."
    fields = {"system_prompt": prompt, "tools": ["calculator"], "overrides": ["variables", "tools"]}
    alice.post("/v1/personas", json={"key": "desk", **fields})
    tool = {"name": "calculator", "description": "?", "parameters": {"type": "object"}}
    ann = end_user(alice)
    said = {"id": "m1", "role": "user", "content": "Hi"}
    chosen: dict[str, Any] = {"persona_id": persona_id, "tools": [{**tool, "client": True}]}
    refused = {
        "/v1/runs": lambda: ann.post(path, {"message": "Hi", **chosen}),
        "/v1/ui/chat": lambda: post(ann, message(), **chosen),
        "/v1/agui": lambda: ann.post(
            f"{path}?persona_id={persona_id}",
            {"threadId": "t", "runId": "r", "messages": [said], "tools": [tool]},
        ),
        "/v1/responses": lambda: ann.post(
            path, {"model": persona_id, "input": "Hi", "tools": [{"type": "function", **tool}]}
        ),
    }[path]()

    error: dict[str, Any] = refused.json or {}
    error = error.get("error", error)
    assert (403, "auth.forbidden") == (refused.status_code, error["code"])
    assert "This client token is for the persona assistant@1." == error["message"]
    assert {} == error.get("details", {})


def test_an_end_user_names_the_tokens_persona_without_its_version(alice: User) -> None:
    """The run has the token's version, also once the org has published another one."""
    alice.post("/v1/personas", json={"key": "desk"})
    ann = end_user(alice, persona_id="desk")
    alice.post("/v1/personas", json={"key": "desk"})

    for persona_id in ("desk", "desk@1"):
        made = ann.post("/v1/runs", {"message": "Hi", "persona_id": persona_id}).json or {}
        assert "desk@1" == shown(alice, made["run_id"])[0]
    newer = ann.post("/v1/runs", {"message": "Hi", "persona_id": "desk@2"})
    assert (403, "auth.forbidden") == error_of(newer)


@pytest.mark.parametrize("kind", ["org", "api_key", "end_user", "persona", "credits"])
def test_a_refusal_by_a_budget_has_no_amounts_for_an_end_user(
    alice: User, connections: Connections, kind: str
) -> None:
    """What the org allows, has spent and has left is its own; the kind of the budget is shown."""
    issuer, nothing = alice, {"max_cost_usd_per_month": 0}
    alice.post("/v1/personas", json={"key": "desk", **(nothing if kind == "persona" else {})})
    match kind:
        case "org":
            alice.call("PUT", "/v1/budget", json=nothing)
        case "end_user":
            alice.call("PUT", "/v1/budget/end-users", json=nothing)
        case "api_key":
            key = alice.post("/v1/api-keys", {"name": "pages", **nothing}).json or {}
            issuer = alice.with_token(key["key"])
        case "credits":
            with connections.transaction() as tx:
                credits.open_prepaid(tx, UUID(str(alice.org_id)), 0)
    ann = end_user(issuer, persona_id="desk")

    refused = ann.post("/v1/runs", {"message": "Hi"})
    response = ann.post("/v1/responses", {"model": "desk", "input": "Hi", "background": True})

    assert (429, "budget.exhausted") == error_of(refused)
    assert {"scope": kind} == (refused.json or {})["details"]
    assert 429 == response.status_code
    text = (response.json or {})["error"]["message"]
    assert f"(scope: {kind})" in text
    assert None is re.search("[0-9]", text)
