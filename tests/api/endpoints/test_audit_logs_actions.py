"""The actions that `/v1/audit-logs` records, each by the request that is one."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from limits import RateLimitItemPerHour

from arkloop.api.http import denials
from arkloop.shared.catalog import client_tools
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from tests.clients import PASSWORD, Register, User, error_of
from tests.end_users import ANN, end_user

SECRET = "never-in-the-log-7c1f"
PAY = {"name": "pay", "description": "x", "parameters": {"type": "object"}, "client": True}


def actions(user: User) -> list[tuple[str, str, dict[str, Any]]]:
    """Return action, id of the target and details of each entry, the oldest first."""
    found = user.get("/v1/audit-logs?limit=200").json or []
    assert SECRET not in json.dumps(found)
    return [(e["action"], e["target"]["id"], e["details"]) for e in reversed(found)]


def life(user: User, path: str, body: dict[str, Any], change: dict[str, Any]) -> str:
    """Create an object, change it and delete it; returns its id."""
    made = user.post(path, body)
    assert 201 == made.status_code, made.text
    object_id = str(made.json["id"])
    if path in ("/v1/tools", "/v1/webhook-endpoints"):
        assert 200 == user.post(f"{path}/{object_id}:rotate-secret").status_code
    assert 200 == user.patch(f"{path}/{object_id}", change).status_code
    assert 204 == user.delete(f"{path}/{object_id}").status_code
    return object_id


def test_changes_of_providers_and_models_are_recorded(alice: User) -> None:
    """Entries have the names of the fields that were sent, and never their values."""
    provider = {"name": "acme", "kind": "openai", "api_key": SECRET}
    made = alice.post("/v1/llm-providers", provider).json
    path = f"/v1/llm-providers/{made['id']}"
    model_id = life(alice, f"{path}/models", {"model": "m"}, {"priority": 3})
    alice.patch(path, {"api_key": f"{SECRET}-2"})
    alice.delete(path)

    assert actions(alice) == [
        ("llm_provider.created", made["id"], {}),
        ("llm_model.created", model_id, {}),
        ("llm_model.changed", model_id, {"fields": ["priority"]}),
        ("llm_model.deleted", model_id, {}),
        ("llm_provider.changed", made["id"], {"fields": ["api_key"]}),
        ("llm_provider.deleted", made["id"], {}),
    ]


def test_changes_of_tools_servers_and_webhooks_are_recorded(alice: User) -> None:
    """The same for what is called and notified on behalf of the org, and for its secrets."""
    headers = {"headers": {"authorization": SECRET}}
    tool = {
        "name": "shop",
        "description": "d",
        "url": "https://example.com/a",
        "parameters": {"type": "object"},
    }
    tool_id = life(alice, "/v1/tools", {**tool, **headers}, headers)
    server = {"name": "files", "url": "https://example.com/mcp"}
    config_id = life(alice, "/v1/mcp-configs", {**server, **headers}, {"name": "docs"})
    hook_id = life(
        alice, "/v1/webhook-endpoints", {"url": "https://example.com/h"}, {"enabled": False}
    )

    assert actions(alice) == [
        ("http_tool.created", tool_id, {}),
        ("http_tool.secret_rotated", tool_id, {}),
        ("http_tool.changed", tool_id, {"fields": ["headers"]}),
        ("http_tool.deleted", tool_id, {}),
        ("mcp_config.created", config_id, {}),
        ("mcp_config.changed", config_id, {"fields": ["name"]}),
        ("mcp_config.deleted", config_id, {}),
        ("webhook_endpoint.created", hook_id, {}),
        ("webhook_endpoint.secret_rotated", hook_id, {}),
        ("webhook_endpoint.changed", hook_id, {"fields": ["enabled"]}),
        ("webhook_endpoint.deleted", hook_id, {}),
    ]


def test_personas_and_budgets_are_recorded(alice: User) -> None:
    """A persona by its version and without its prompt, a budget with its new limits."""
    persona = {"key": "clerk", "version": "3", "system_prompt": SECRET}
    assert 201 == alice.post("/v1/personas", persona).status_code
    alice.call("PUT", "/v1/budget", json={"max_cost_usd": 0.5})
    alice.call("PUT", "/v1/budget/end-users", json={"max_cost_usd_per_month": 2})

    none = {"max_cost_usd": None, "max_cost_usd_per_month": None}
    assert actions(alice) == [
        ("persona.published", "clerk@3", {}),
        ("budget.changed", "org", {**none, "max_cost_usd": "0.5"}),
        ("budget.changed", "end_user", {**none, "max_cost_usd_per_month": "2"}),
    ]


def test_changes_of_members_are_recorded(alice: User, client: FlaskClient) -> None:
    """Entries cover all from the invitation to the removal, each with the role that it gives."""
    path = f"/v1/orgs/{alice.org_id}"
    revoked = alice.post(f"{path}/invitations", {"name": "x", "role": "owner"}).json["id"]
    alice.delete(f"{path}/invitations/{revoked}")
    invited = alice.post(f"{path}/invitations", {"name": "Bob", "role": "member"}).json
    names = {"login": f"b{invited['id']}", "email": f"{invited['id']}@example.com"}
    joined = client.post(
        "/v1/auth/register", json={**names, "password": PASSWORD, "invitation": invited["token"]}
    )
    bob = joined.json["user_id"]
    alice.patch(f"{path}/members/{bob}", {"role": "admin"})
    alice.delete(f"{path}/members/{bob}")

    assert actions(alice) == [
        ("invitation.created", revoked, {"role": "owner"}),
        ("invitation.revoked", revoked, {}),
        ("invitation.created", invited["id"], {"role": "member"}),
        ("member.joined", bob, {}),
        ("user.created", bob, {}),
        ("auth.logged_in", bob, {}),
        ("member.role_changed", bob, {"role": "admin"}),
        ("member.removed", bob, {}),
    ]


@pytest.mark.parametrize("by_themselves", [True, False])
def test_keys_that_end_with_their_member_are_recorded(
    alice: User, register: Register, by_themselves: bool
) -> None:
    """Each has an entry of its own, by who removes the member; one that has ended before, none."""
    bob = register(org_of=alice, role="member")
    keys = [str(bob.post("/v1/api-keys", {"name": name}).json["id"]) for name in "abc"]
    bob.delete(f"/v1/api-keys/{keys[0]}")
    before = len(actions(alice))

    by = bob if by_themselves else alice
    assert 204 == by.delete(f"/v1/orgs/{alice.org_id}/members/{bob.id}").status_code

    [removed, *revoked] = actions(alice)[before:]
    assert ("member.removed", str(bob.id), {}) == removed
    assert [("api_key.revoked", key_id, {}) for key_id in sorted(keys[1:])] == sorted(revoked)
    entries = alice.get("/v1/audit-logs?action=api_key.revoked&limit=2").json or []
    assert {str(by.id)} == {entry["actor"]["user_id"] for entry in entries}


def test_resets_of_passwords_are_recorded(
    alice: User, register: Register, client: FlaskClient
) -> None:
    """The token by the admin who makes it, its use by the user whose password it is."""
    bob = register(org_of=alice, role="member")
    path = f"/v1/orgs/{alice.org_id}/members/{bob.id}/password-reset"
    body = {"token": alice.post(path).json["token"], "password": SECRET}
    assert 200 == client.post("/v1/auth/password-reset", json=body).status_code

    assert actions(alice) == [
        ("auth.password_reset_created", str(bob.id), {}),
        ("auth.password_reset", str(bob.id), {}),
    ]


def test_what_fails_is_not_recorded(alice: User) -> None:
    """An action and its entry are one transaction."""
    alice.post("/v1/tools", {"name": "shop"})
    alice.delete(f"/v1/api-keys/{new_id()}")

    assert [] == [action for action, _, _ in actions(alice)]


def test_a_repeated_request_is_recorded_once(alice: User) -> None:
    """An `Idempotency-Key` that comes again changes nothing, and the log neither."""
    for _ in range(2):
        alice.post("/v1/api-keys", {"name": "a"}, headers={"Idempotency-Key": "once"})

    assert ["api_key.created"] == [action for action, _, _ in actions(alice)]


@pytest.mark.parametrize(
    ("content", "decision"),
    [
        ("yes", "approve"),
        (f"no, {SECRET}", "deny"),
        (json.dumps({"decision": "edit", "arguments": {"a": SECRET}}), "edit"),
        (f"{SECRET}?", "unclear"),
    ],
)
def test_who_approves_what_is_recorded(
    alice: User, make_run: Callable[..., UUID], content: str, decision: str
) -> None:
    """The run, the call, the decision and the end user who made it, without their words."""
    ann = end_user(alice)
    thread_id = ann.thread()
    request = {"request_id": str(new_id()), "tool_call_id": "call_1_1", "tool_name": "pay"}
    run_id = make_run(
        alice,
        thread_id,
        RunState.WAITING,
        end_user_id=ANN,
        pending_input={**request, "kind": "tool_confirmation", "prompt": SECRET},
        options={"tools": client_tools.to_text([PAY])},  # whose arguments end users may change
        input_expires_at=datetime.now(UTC) + timedelta(hours=1),
    )

    for _ in range(2):
        body = {"content": content, "request_id": request["request_id"]}
        assert 200 == ann.post(f"/v1/runs/{run_id}/input", body).status_code

    expected = ("run.approval_answered", str(run_id), {**request, "decision": decision})
    assert [expected] == actions(alice)
    actor = alice.get("/v1/audit-logs?limit=1").json[0]["actor"]
    assert ("end_user", ANN, str(alice.id)) == (
        actor["type"],
        actor["end_user_id"],
        actor["user_id"],
    )


def test_a_cancel_is_recorded_if_the_run_had_not_ended(
    alice: User, make_run: Callable[..., UUID]
) -> None:
    """A run that has ended is not cancelled again."""
    run_id = make_run(alice, alice.thread(), RunState.QUEUED)

    for _ in range(2):
        assert 200 == alice.post(f"/v1/runs/{run_id}:cancel").status_code

    assert [("run.cancelled", str(run_id), {})] == actions(alice)


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.EXECUTING])
@pytest.mark.parametrize("has_key", [False, True])
def test_a_cancel_has_one_entry_for_each_idempotency_key(
    alice: User, make_run: Callable[..., UUID], state: RunState, has_key: bool
) -> None:
    """A cancel that is sent again is replayed; without a key each of a run that executes counts."""
    run_id = make_run(alice, alice.thread(), state)
    headers = {"Idempotency-Key": "stop"} if has_key else {}

    sent = [alice.post(f"/v1/runs/{run_id}:cancel", headers=headers) for _ in range(2)]

    assert [(200, {"ok": True})] * 2 == [(answer.status_code, answer.json) for answer in sent]
    assert has_key == ("Idempotency-Replayed" in sent[1].headers)
    counted = 2 if state is RunState.EXECUTING and not has_key else 1
    assert [("run.cancelled", str(run_id), {})] * counted == actions(alice)


def test_denied_access_is_recorded_once_an_hour_for_each_endpoint(
    alice: User, register: Register
) -> None:
    """A member who asks again and again for what is the admins' is recorded once."""
    member = register(org_of=alice, role="member")

    for _ in range(3):
        assert (403, "auth.forbidden") == error_of(member.get("/v1/audit-logs?limit=3"))
    assert (403, "auth.forbidden") == error_of(member.post("/v1/tools", {}))

    denied = [entry for entry in actions(alice) if entry[0] == "access.denied"]
    assert denied == [
        ("access.denied", "GET /v1/audit-logs", {"path": "/v1/audit-logs"}),
        ("access.denied", "POST /v1/tools", {"path": "/v1/tools"}),
    ]
    of_member = alice.get(f"/v1/audit-logs?actor_user_id={member.id}&action=access.denied").json
    assert 2 == len(of_member)


def test_denied_streams_and_results_are_recorded(
    alice: User, make_run: Callable[..., UUID]
) -> None:
    """Both endpoints identify their callers by themselves, by a token or by a ticket."""
    path = f"/v1/runs/{make_run(alice, alice.thread())}"
    ticket = (alice.post(f"{path}/stream-ticket").json or {})["ticket"]
    key = alice.api_key("data.threads.read")

    refused = [
        key.get(f"{path}/events"),
        key.post(f"{path}/tool-results", []),
        alice.client.post(f"{path}/tool-results?ticket={ticket}", json=[]),
    ]

    assert [(403, "auth.forbidden")] * 3 == [error_of(answer) for answer in refused]
    denied = [entry for entry in actions(alice) if entry[0] == "access.denied"]
    results = "POST /v1/runs/<id:run_id>/tool-results"
    assert denied == [
        ("access.denied", "GET /v1/runs/<id:run_id>/events", {"path": f"{path}/events"}),
        *[("access.denied", results, {"path": f"{path}/tool-results"})] * 2,
    ]


def test_denials_of_an_org_are_bounded(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many actors together do not fill the log."""
    monkeypatch.setattr(denials, "_OF_ORG", RateLimitItemPerHour(3))

    for number in range(6):
        assert 403 == end_user(alice, f"customer-{number}").get("/v1/budget").status_code

    assert 3 == [action for action, _, _ in actions(alice)].count("access.denied")
