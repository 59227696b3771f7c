"""Replies of end users to requests for approval, by each way in."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from werkzeug.test import TestResponse

from arkloop.shared.catalog import client_tools
from arkloop.shared.events.types import ToolCallRequested
from arkloop.shared.ids import new_id
from arkloop.shared.storage.tables.catalog import personas
from arkloop.shared.storage.tables.runs import inputs, runs
from tests.api.endpoints.published_personas import published
from tests.clients import Register, User, error_of
from tests.end_users import ANN, end_user
from tests.query_plans import noted
from tests.stored_runs import StoredRuns

CHAT = "chat of Ann"
LOCATE = {"name": "locate", "description": "x", "parameters": {"type": "object"}, "client": True}
GUARDED: dict[str, Any] = {
    "key": "desk",
    "tools": ["calculator"],
    "client_tools": [LOCATE],
    "require_approval": ["*"],
}
SAID = {"id": "m9", "role": "user", "content": "Go on, then."}
EDIT = '{"decision": "edit", "arguments": {"expression": "1+1"}}'
EDITED_IN_AGUI = {"approved": True, "editedArgs": {"expression": "1+1"}}


@dataclass(frozen=True)
class Asked:
    """A run of an end user that waits for the approval of a call."""

    ann: User
    run_id: UUID
    request_id: UUID
    name: str

    def by_input(self, content: str, user: User | None = None) -> TestResponse:
        return (user or self.ann).post(f"/v1/runs/{self.run_id}/input", {"content": content})

    def by_ai_sdk(self, *, approved: bool) -> TestResponse:
        approval = {"id": str(self.request_id), "approved": approved}
        part = {"type": f"tool-{self.name}", "toolCallId": "c", "approval": approval}
        parts = [{**part, "state": "approval-responded"}]
        message = {"id": str(self.run_id), "role": "assistant", "parts": parts}
        return self.ann.post("/v1/ui/chat", {"id": CHAT, "messages": [message]}, buffered=False)

    def by_agui(self, payload: Mapping[str, Any] | None, *messages: Any) -> TestResponse:
        status = "cancelled" if payload is None else "resolved"
        resume = [{"interruptId": str(self.request_id), "status": status, "payload": payload}]
        body = {"threadId": CHAT, "runId": str(new_id()), "messages": list(messages)}
        return self.ann.post("/v1/agui", {**body, "resume": resume}, buffered=False)

    def by_responses(self, *items: Any) -> TestResponse:
        body = {"model": "desk", "background": True, "input": list(items)}
        previous = f"resp_{self.run_id.hex}"
        return self.ann.post("/v1/responses", {**body, "previous_response_id": previous})

    def by_responses_approval(self, *, approve: bool) -> TestResponse:
        output = (self.ann.get(f"/v1/responses/resp_{self.run_id.hex}").json or {})["output"]
        request = {"approval_request_id": output[-1]["id"], "approve": approve}
        return self.by_responses({"type": "mcp_approval_response", **request})


#: `make_asked(name="calculator", **fields)`: the tool of the call, and fields of the persona.
MakeAsked = Callable[..., Asked]


@pytest.fixture
def make_asked(stored: StoredRuns, alice: User) -> MakeAsked:
    def make(name: str = "calculator", **fields: Any) -> Asked:
        persona_id = published(alice, **{**GUARDED, **fields})["id"]
        ann = end_user(alice, persona_id=persona_id)
        thread_id = UUID(ann.thread(external_id=CHAT))
        run_id = stored.create(thread_id, persona_id=persona_id, end_user_id=ANN)
        claim = stored.held(run_id)
        arguments = {"expression": "6*7"}
        stored.write(claim, ToolCallRequested(tool_call_id="c", name=name, arguments=arguments))
        request_id, at_end = new_id(), replace(claim, last_seq=stored.last_seq(run_id))
        stored.park(at_end, request_id, kind="tool_confirmation", tool_call_id="c")
        shown = {"tool_name": name, "arguments": arguments}
        stored.set(run_id, pending_input={**stored.row(run_id)["pending_input"], **shown})
        return Asked(ann, run_id, request_id, name)

    return make


def of_run(stored: StoredRuns, run_id: UUID) -> tuple[Any, ...]:
    """Return what a reply would change: the run, what was said to it, and the runs of its org."""
    run = stored.row(run_id)
    with stored.connections.reading() as sql:
        said = sql.scalar(select(func.count()).where(inputs.c.run_id == run_id))
        made = sql.scalar(select(func.count()).where(runs.c.org_id == run["org_id"]))
    return run["state"], run["pending_input"], said, made


REPLIES: dict[str, Callable[[Asked], TestResponse]] = {
    "in words": lambda asked: asked.by_input("yes"),
    "a denial": lambda asked: asked.by_input("no"),
    "in full": lambda asked: asked.by_input('{"decision": "approve"}'),
    "an edit": lambda asked: asked.by_input(EDIT),
    "ai sdk": lambda asked: asked.by_ai_sdk(approved=True),
    "ai sdk, a denial": lambda asked: asked.by_ai_sdk(approved=False),
    "ag-ui": lambda asked: asked.by_agui({"approved": True}),
    "ag-ui, an edit": lambda asked: asked.by_agui(EDITED_IN_AGUI),
    "ag-ui, cancelled": lambda asked: asked.by_agui(None),
    "ag-ui, cancelled by a message": lambda asked: asked.by_agui(None, SAID),
    "responses": lambda asked: asked.by_responses_approval(approve=True),
    "responses, a denial": lambda asked: asked.by_responses_approval(approve=False),
    "responses, in words": lambda asked: asked.by_responses({"role": "user", "content": "yes"}),
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_no_end_user_replies_to_what_is_reserved_for_the_org(
    stored: StoredRuns,
    alice: User,
    make_asked: MakeAsked,
    reply: Callable[[Asked], TestResponse],
) -> None:
    """403, which is in the audit log, and nothing has changed; a key of the org may approve."""
    asked = make_asked(approved_by="org")
    before = of_run(stored, asked.run_id)

    refused = reply(asked)

    assert (403, "approvals.reserved") == (refused.status_code, code_of(refused))
    assert before == of_run(stored, asked.run_id)
    [entry] = alice.get("/v1/audit-logs?action=access.denied").json or []
    assert ("end_user", ANN) == (entry["actor"]["type"], entry["actor"]["end_user_id"])
    given = asked.by_input("yes", alice.api_key("data.runs.write"))
    assert (200, "queued") == (given.status_code, stored.state(asked.run_id))


def test_what_is_reserved_for_the_org_is_approved_by_its_admins(
    stored: StoredRuns, register: Register, make_asked: MakeAsked
) -> None:
    """A member whose run it is not cannot: 403, with a key, too, and nothing has changed."""
    asked = make_asked(approved_by="org")
    before = of_run(stored, asked.run_id)
    member, admin = (register(org_of=asked.ann, role=role) for role in ("member", "admin"))

    for who in (member, member.api_key("data.runs.write"), admin.api_key("data.runs.write")):
        assert (403, "auth.forbidden") == error_of(asked.by_input("yes", who))
    assert before == of_run(stored, asked.run_id)
    assert 200 == asked.by_input("yes", admin).status_code


@pytest.mark.parametrize("decision", ["approve", "deny"])
def test_an_end_user_replies_where_anyone_may(
    stored: StoredRuns, make_asked: MakeAsked, decision: str
) -> None:
    """The default: the call is approved or denied as it is."""
    asked = make_asked()

    given = asked.by_input(json.dumps({"decision": decision}))

    assert (200, "queued") == (given.status_code, stored.state(asked.run_id))


EDITS: dict[str, Callable[[Asked], TestResponse]] = {
    "input": lambda asked: asked.by_input(EDIT),
    "ag-ui": lambda asked: asked.by_agui(EDITED_IN_AGUI),
    "responses": lambda asked: asked.by_responses({"role": "user", "content": EDIT}),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_end_user_edits_no_call_of_the_org(
    stored: StoredRuns, make_asked: MakeAsked, edit: Callable[[Asked], TestResponse]
) -> None:
    """403, and nothing has changed; the call can be approved as it is."""
    asked = make_asked()
    before = of_run(stored, asked.run_id)

    refused = edit(asked)

    assert (403, "approvals.edit_reserved") == (refused.status_code, code_of(refused))
    assert before == of_run(stored, asked.run_id)
    assert 200 == asked.by_input("yes").status_code


@pytest.mark.parametrize("of_run_itself", [False, True])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_end_user_edits_calls_of_their_own_page(
    stored: StoredRuns,
    make_asked: MakeAsked,
    edit: Callable[[Asked], TestResponse],
    of_run_itself: bool,
) -> None:
    """The client tools of the persona, and those of the run."""
    asked = make_asked("locate", client_tools=[] if of_run_itself else [LOCATE])
    if of_run_itself:
        stored.set(asked.run_id, options={"tools": client_tools.to_text([LOCATE])})

    given = edit(asked)
    given.close()

    assert (200, "queued") == (given.status_code, stored.state(asked.run_id)), given.text


def test_questions_are_open_to_end_users(stored: StoredRuns, make_asked: MakeAsked) -> None:
    """What is reserved are approvals alone."""
    asked = make_asked(approved_by="org")
    pending = stored.row(asked.run_id)["pending_input"]
    stored.set(asked.run_id, pending_input={**pending, "kind": "question"})

    assert 200 == asked.by_input("yes").status_code


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"later": 1}, (200, None)), ({"approved_by": "later"}, (403, "approvals.reserved"))],
)
def test_a_persona_of_a_later_release_is_read_as_far_as_it_can_be(
    stored: StoredRuns,
    make_asked: MakeAsked,
    change: dict[str, Any],
    expected: tuple[int, str | None],
) -> None:
    """End users reply during a deploy, but not where that release may have reserved it."""
    asked = make_asked()
    with stored.connections.transaction() as tx:
        of_org = update(personas).where(personas.c.org_id == stored.actor.org_id)
        tx.sql.execute(of_org.values(definition=personas.c.definition.concat(change)))

    given = asked.by_input("yes")

    assert expected == (given.status_code, (given.json or {}).get("code"))


@pytest.mark.parametrize("is_end_user", [False, True])
def test_only_replies_of_end_users_read_the_persona(
    stored: StoredRuns, alice: User, make_asked: MakeAsked, is_end_user: bool
) -> None:
    """Members and keys may approve whatever it says."""
    asked = make_asked()

    with noted(stored.connections) as statements:
        given = asked.by_input("yes", asked.ann if is_end_user else alice)

    read = [sql for sql, _ in statements if "FROM personas" in sql]
    assert (200, int(is_end_user)) == (given.status_code, len(read))


@pytest.mark.parametrize("name", ["calculator", "locate"])
def test_an_approval_in_ag_ui_offers_what_its_reader_may_do(
    alice: User, make_asked: MakeAsked, name: str
) -> None:
    """Members are offered `editedArgs` for every call, end users for those of their page."""
    asked = make_asked(name)

    assert "editedArgs" in offered(alice)
    assert (name == "locate") == ("editedArgs" in offered(asked.ann))
    assert {"approved", "reason"} <= offered(asked.ann)


def offered(user: User) -> set[str]:
    """Return the fields of the reply that the chat's open interrupt describes."""
    body = {"threadId": CHAT, "runId": str(new_id()), "messages": []}
    lines = user.post("/v1/agui/connect", body).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line[:6] == "data: "]
    [interrupt] = events[-1]["outcome"]["interrupts"]
    return set(interrupt["responseSchema"]["properties"])


def code_of(refused: TestResponse) -> str:
    """Return the code of an error, which OpenAI's Responses nest."""
    body = refused.json or {}
    return str(body.get("error", body)["code"])
