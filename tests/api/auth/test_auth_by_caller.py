"""Every route with every kind of caller: who may call it stands in a table, and nowhere else here.

A route without a row fails the suite. To members of a suspended org all of them are closed. Tokens
that are not valid are tried on every route in `test_bearer.py`, and what end users see of each
other in `test_bearer_end_users.py`.
"""

from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

import pytest
from flask import Flask
from werkzeug.routing import Rule

from arkloop.shared.accounts import suspensions
from arkloop.shared.actors import DATA_PERMISSIONS, SCOPES
from arkloop.shared.storage.connections import Connections
from tests.api.auth.test_bearer import AN_ID, NAMES, PUBLIC
from tests.clients import Register, User
from tests.end_users import end_user

pytestmark = pytest.mark.own_database

#: Any user by any token, except a key for workers alone.
ANYONE = "anyone"
#: A user who has logged in: no API key.
PERSON = "person"
#: A user who has logged in, or a key with the scope `admin`.
MANAGER = "manager"
#: A user in this role.
OWNER = "owner"

#: Method and rule, and what a caller must have. With a star client tokens may have it, too.
TABLE = """
GET /v1/me                                                  anyone
GET /v1/api-keys                                            manager
POST /v1/api-keys                                           manager
PATCH /v1/api-keys/<id:key_id>                              manager
DELETE /v1/api-keys/<id:key_id>                             manager
POST /v1/client-tokens                                      anyone
POST /v1/auth/password                                      person
POST /v1/auth/oidc/link                                     person
GET /v1/auth/sessions                                       person
DELETE /v1/auth/sessions/<id:session_id>                    person
GET /v1/orgs/<id:org_id>/members                            manager
PATCH /v1/orgs/<id:org_id>/members/<id:user_id>             person admin
DELETE /v1/orgs/<id:org_id>/members/<id:user_id>            person
POST /v1/orgs/<id:org_id>/members/<id:user_id>/password-reset  person admin
GET /v1/orgs/<id:org_id>/invitations                        person admin
POST /v1/orgs/<id:org_id>/invitations                       person admin
DELETE /v1/orgs/<id:org_id>/invitations/<id:invitation_id>  person admin
GET /v1/orgs/<id:org_id>/identity-provider                  person admin
PUT /v1/orgs/<id:org_id>/identity-provider                  person owner
DELETE /v1/orgs/<id:org_id>/identity-provider               person owner
GET /v1/budget                                              admin
PUT /v1/budget                                              admin
GET /v1/budget/end-users                                    admin
PUT /v1/budget/end-users                                    admin
GET /v1/audit-logs                                          admin
GET /v1/audit-logs/head                                     admin
GET /v1/me/usage                                            data.runs.read
GET /v1/me/usage/daily                                      data.runs.read
GET /v1/me/usage/by-model                                   data.runs.read
GET /v1/me/usage/by-end-user                                data.runs.read
GET /v1/me/usage/by-metadata                                data.runs.read
GET /v1/me/credits                                          data.runs.read
GET /v1/threads                                             data.threads.read *
POST /v1/threads                                            data.threads.write *
GET /v1/threads/<id:thread_id>                              data.threads.read *
PATCH /v1/threads/<id:thread_id>                            data.threads.write data.threads.read *
DELETE /v1/threads/<id:thread_id>                           data.threads.write *
GET /v1/threads/<id:thread_id>/messages                     data.threads.read *
POST /v1/threads/<id:thread_id>/messages                    data.threads.write *
GET /v1/threads/<id:thread_id>/timeline                     data.threads.read data.runs.read *
GET /v1/threads/<id:thread_id>/events                       data.threads.read data.runs.read *
GET /v1/threads/<id:thread_id>/runs                         data.runs.read *
POST /v1/threads/<id:thread_id>/runs                        data.runs.write *
POST /v1/threads/<id:thread_id>:retry                       data.runs.write *
GET /v1/runs                                                data.runs.read *
POST /v1/runs                                               data.runs.write data.threads.write *
GET /v1/runs/<id:run_id>                                    data.runs.read *
PATCH /v1/runs/<id:run_id>                                  data.runs.write data.runs.read
POST /v1/runs/<id:run_id>:cancel                            data.runs.write *
POST /v1/runs/<id:run_id>/input                             data.runs.write *
GET /v1/runs/<id:run_id>:explain                            data.runs.read *
GET /v1/runs/<id:run_id>/prompts                            data.runs.read data.threads.read
GET /v1/runs/<id:run_id>/events                             data.runs.read *
POST /v1/runs/<id:run_id>/stream-ticket                     data.runs.read *
POST /v1/runs/<id:run_id>/tool-results                      data.runs.write *
POST /v1/files                                              data.files.write *
GET /v1/files/<id:file_id>                                  data.files.read *
GET /v1/files/<id:file_id>/content                          data.files.read *
DELETE /v1/files/<id:file_id>                               data.files.write *
GET /v1/routes                                              data.runs.read
GET /v1/personas                                            data.runs.read
POST /v1/personas                                           admin
GET /v1/personas/<persona_id>                               data.runs.read
GET /v1/llm-providers                                       admin
POST /v1/llm-providers                                      admin
GET /v1/llm-providers/<id:provider_id>                      admin
PATCH /v1/llm-providers/<id:provider_id>                    admin
DELETE /v1/llm-providers/<id:provider_id>                   admin
GET /v1/llm-providers/<id:provider_id>/models               admin
POST /v1/llm-providers/<id:provider_id>/models              admin
GET /v1/llm-providers/<id:provider_id>/models/<id:model_id> admin
PATCH /v1/llm-providers/<id:provider_id>/models/<id:model_id> admin
DELETE /v1/llm-providers/<id:provider_id>/models/<id:model_id> admin
GET /v1/mcp-configs                                         admin
POST /v1/mcp-configs                                        admin
GET /v1/mcp-configs/<id:config_id>                          admin
PATCH /v1/mcp-configs/<id:config_id>                        admin
DELETE /v1/mcp-configs/<id:config_id>                       admin
POST /v1/mcp-configs/<id:config_id>:discover                admin
DELETE /v1/mcp-configs/<id:config_id>/grants                admin
GET /v1/mcp-configs/<id:config_id>/tools                    admin
POST /v1/mcp-configs/<id:config_id>/tools/<name>:approve    admin
POST /v1/mcp-configs/<id:config_id>/tools:approve           admin
GET /v1/tools                                               admin
POST /v1/tools                                              admin
GET /v1/tools/<id:tool_id>                                  admin
PATCH /v1/tools/<id:tool_id>                                admin
DELETE /v1/tools/<id:tool_id>                               admin
POST /v1/tools/<id:tool_id>:rotate-secret                   admin
GET /v1/tool-workers/<name>/tools                           data.runs.read
DELETE /v1/tool-workers/<name>/tools/<tool>                 admin
POST /v1/tool-workers/<name>:poll                           tools.work
POST /v1/tool-workers/<name>:heartbeat                      tools.work
POST /v1/tool-workers/<name>:complete                       tools.work
POST /v1/tool-workers/<name>:fail                           tools.work
POST /v1/agent-workers/<name>:poll                          agents.work
POST /v1/agent-workers/<name>:heartbeat                     agents.work
POST /v1/agent-workers/<name>:append                        agents.work
POST /v1/agent-workers/<name>:checkpoint                    agents.work
POST /v1/agent-workers/<name>:ask                           agents.work
POST /v1/agent-workers/<name>:delegate                      agents.work
POST /v1/agent-workers/<name>:reserve                       agents.work
POST /v1/agent-workers/<name>:complete                      agents.work
POST /v1/agent-workers/<name>:fail                          agents.work
POST /v1/agent-workers/<name>:release                       agents.work
GET /v1/agent-workers/<name>/runs/<id:run_id>/files/<id:file_id> agents.work
GET /v1/webhook-endpoints                                   admin
POST /v1/webhook-endpoints                                  admin
GET /v1/webhook-endpoints/<id:endpoint_id>                  admin
PATCH /v1/webhook-endpoints/<id:endpoint_id>                admin
DELETE /v1/webhook-endpoints/<id:endpoint_id>               admin
POST /v1/webhook-endpoints/<id:endpoint_id>:rotate-secret   admin
POST /v1/webhook-endpoints/<id:endpoint_id>:test            admin
POST /v1/webhook-endpoints/<id:endpoint_id>:replay          admin
GET /v1/webhook-endpoints/<id:endpoint_id>/deliveries       admin
GET /v1/webhook-endpoints/<id:endpoint_id>/deliveries/<id:delivery_id> admin
POST /v1/responses                                          data.runs.write data.runs.read data.threads.write *
GET /v1/responses/<response:response_id>                    data.runs.read *
POST /v1/responses/<response:response_id>/cancel            data.runs.write data.runs.read *
POST /v1/responses/<response:response_id>:cancel            data.runs.write data.runs.read *
POST /v1/ui/chat                                            data.runs.write data.runs.read data.threads.write *
GET /v1/ui/chat/<path:chat_id>/stream                       data.runs.read *
POST /v1/ui/chat/<path:chat_id>/stop                        data.runs.write *
GET /v1/ui/chat/<path:chat_id>/messages                     data.threads.read data.runs.read *
POST /v1/agui                                               data.runs.write data.runs.read data.threads.write *
POST /v1/agui/connect                                       data.runs.read data.threads.read *
GET /v1/operator/queues                                     operator
GET /v1/operator/workers                                    operator
GET /v1/operator/leases                                     operator
GET /v1/operator/stuck-runs                                 operator
GET /v1/operator/runs/<id:run_id>:explain                   operator
POST /v1/operator/runs/<id:run_id>:requeue                  operator
POST /v1/operator/runs/<id:run_id>:cancel                   operator
POST /v1/operator/orgs/<id:org_id>:suspend                  operator
POST /v1/operator/orgs/<id:org_id>:resume                   operator
POST /v1/auth/logout                                        anyone
"""  # noqa: E501 - a table
#: Bodies of the routes that look at more than one scope once they have read one.
BODIES = {
    "PATCH /v1/orgs/<id:org_id>/members/<id:user_id>": {"role": "member"},
    "POST /v1/orgs/<id:org_id>/invitations": {"name": "A colleague", "role": "member"},
    "POST /v1/runs": {"message": "Hello", "tools": "none"},
    "POST /v1/responses": {"model": "assistant", "input": 7},
    "POST /v1/agui": {"threadId": "t", "runId": "r", "messages": []},
    "POST /v1/agui/connect": {"threadId": "t", "runId": "r", "messages": []},
}


class Row(NamedTuple):
    """A route, what its caller must have, and whether client tokens may call it."""

    route: str
    needs: frozenset[str]
    end_users: bool


ROWS = [
    Row(f"{method} {rule}", frozenset(needs) - {"*"}, "*" in needs)
    for method, rule, *needs in map(str.split, TABLE.strip().splitlines())
]


class Caller(NamedTuple):
    """A caller, and what the table calls what they have."""

    user: User
    has: frozenset[str]
    is_end_user: bool = False

    def may(self, row: Row) -> bool:
        return row.needs <= self.has and (row.end_users or not self.is_end_user)


LOGGED_IN = {ANYONE, PERSON, MANAGER}
ALL = {
    "owner": LOGGED_IN | SCOPES | {OWNER},
    "admin": LOGGED_IN | SCOPES,
    "member": LOGGED_IN | DATA_PERMISSIONS,
}


def of_role(register: Register, role: str) -> Caller:
    owner = register()
    user = owner if role == "owner" else register(org_of=owner, role=role)
    return Caller(user, frozenset(ALL[role]))


def of_key(register: Register, *scopes: str) -> Caller:
    is_for_workers = set(scopes) <= {"agents.work", "tools.work"}
    also = {MANAGER} if "admin" in scopes else set[str]()
    also |= set() if is_for_workers else {ANYONE}
    return Caller(register().api_key(*scopes), frozenset({*scopes, *also}))


def of_member(register: Register, *scopes: str) -> Caller:
    """Return a member's key: its scopes are narrowed to what a member may."""
    member = register(org_of=register(), role="member").api_key(*scopes)
    return Caller(member, frozenset({ANYONE, *scopes}) & ALL["member"])


def of_end_user(register: Register, *scopes: str) -> Caller:
    return Caller(end_user(register(), scopes=list(scopes)), frozenset(scopes), is_end_user=True)


DATA, EVERY = sorted(DATA_PERMISSIONS), sorted(SCOPES)
CALLERS: dict[str, tuple[Callable[..., Caller], tuple[str, ...]]] = {
    **{role: (of_role, (role,)) for role in ALL},
    "a key with every scope": (of_key, tuple(EVERY)),
    **{f"a key with {one}": (of_key, (one,)) for one in EVERY},
    **{f"a key without {one}": (of_key, tuple(s for s in EVERY if s != one)) for one in EVERY},
    "a member's key": (of_member, tuple(DATA)),
    "an end user": (of_end_user, tuple(DATA)),
    **{f"an end user with {one}": (of_end_user, (one,)) for one in DATA},
}


def paths(app: Flask, org_id: UUID) -> dict[str, str]:
    """Return the path of each route of this org, with ids of nothing."""
    found: dict[str, str] = {}
    names = {**NAMES, "org_id": str(org_id)}
    for rule in app.url_map.iter_rules():
        built = rule.build({name: names.get(name, AN_ID) for name in rule.arguments})
        assert built is not None
        found |= dict.fromkeys(routes_of(rule), built[1])
    return found


def routes_of(rule: Rule) -> set[str]:
    return {f"{method} {rule.rule}" for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}}


def test_every_route_has_a_row(app: Flask) -> None:
    """Each method of each route that is not public stands in the table, once."""
    rules = (rule for rule in app.url_map.iter_rules() if rule.rule not in PUBLIC)
    routes = {route for rule in rules for route in routes_of(rule)}

    assert sorted(routes) == sorted(row.route for row in ROWS)


@pytest.mark.parametrize("caller", CALLERS)
def test_a_caller_may_what_the_table_says(app: Flask, register: Register, caller: str) -> None:
    """Every route: 403 for those who lack what it needs, and neither 401 nor 403 for others."""
    make, arguments = CALLERS[caller]
    who = make(register, *arguments)
    path_of = paths(app, who.user.org_id)
    found = {row.route: answer_of(who.user, row.route, path_of[row.route]) for row in ROWS}
    expected = {row.route: "allowed" if who.may(row) else "refused" for row in ROWS}

    assert expected == found


SUSPENDED = ("owner", "member", "a key with every scope", "a key with tools.work", "an end user")


@pytest.mark.parametrize("caller", SUSPENDED)
def test_nobody_of_a_suspended_org_may_anything(
    app: Flask, register: Register, connections: Connections, caller: str
) -> None:
    """Every route: 401 with a code of its own; and after it is resumed, as the table says."""
    make, arguments = CALLERS[caller]
    who = make(register, *arguments)
    path_of = paths(app, who.user.org_id)
    with connections.transaction() as tx:
        suspensions.suspend(tx, who.user.org_id, "Unpaid bills")
    app.extensions["arkloop.auth"].forget()

    for row in ROWS:
        response = who.user.call(row.route.split(" ")[0], path_of[row.route])
        assert 401 == response.status_code, row.route
        assert "Bearer" == response.headers["WWW-Authenticate"]
        if not row.route.startswith("POST /v1/responses"):
            assert "org.suspended" in response.text, row.route
    with connections.transaction() as tx:
        suspensions.resume(tx, who.user.org_id)
    app.extensions["arkloop.auth"].forget()
    found = {row.route: answer_of(who.user, row.route, path_of[row.route]) for row in ROWS}
    assert {row.route: "allowed" if who.may(row) else "refused" for row in ROWS} == found


def answer_of(user: User, route: str, path: str) -> str:
    response = user.call(route.split(" ")[0], path, json=BODIES.get(route))
    response.close()
    return {401: "unknown", 403: "refused"}.get(response.status_code, "allowed")
