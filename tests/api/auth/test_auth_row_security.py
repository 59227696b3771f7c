"""The filters by org are taken out of the statements of requests: the wall is what remains."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from flask import Flask, g, has_request_context
from sqlalchemy import event

from arkloop.api.app import create_app
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.tables.accounts import memberships
from arkloop.shared.storage.tables.threads import threads
from arkloop.shared.threads import threads as thread_rows
from tests import walls
from tests.api.auth.test_auth_by_caller import routes_of
from tests.api.auth.test_auth_foreign_objects import (
    BODIES,
    QUERIES,
    ids,
    path_of,
    rules_of_orgs,
    said,
    shown,
)
from tests.clients import Register, User
from tests.stored_runs import StoredRuns

pytestmark = pytest.mark.own_database

__all__ = ["ids"]

#: A condition of a statement that names the org of the caller, as the code has it.
FILTER = re.compile(r"\b(?:\w+\.)?(?:org_id|visible_to) = %\(\w+\)s(?:::UUID)?")
LISTS = (
    *("/v1/threads", "/v1/runs", "/v1/api-keys", "/v1/llm-providers", "/v1/mcp-configs"),
    *("/v1/tools", "/v1/webhook-endpoints", "/v1/personas"),
)
#: What no org has alone: statements about it work for the service as a whole.
OF_PERSONS = re.compile(r"/v1/auth/|/password-reset$|DELETE /v1/orgs/<id:org_id>/members/")


@contextmanager
def without_filters(settings: Settings) -> Iterator[Flask]:
    """Make an app whose statements name no org, once it knows the caller."""
    opened = connect(settings, application="tests-faulty")
    with app_on(opened) as app:
        event.listen(opened.engine, "before_cursor_execute", remove, retval=True)
        yield app


def remove(*args: Any) -> tuple[str, Any]:
    statement, parameters = args[2:4]
    if has_request_context() and "actor" in g:
        statement = FILTER.sub("true", statement)
    return statement, parameters


@contextmanager
def app_on(opened: Connections) -> Iterator[Flask]:
    """Make an app, and close it with its connections."""
    app = create_app(connections=opened)
    yield app
    for name in ("hub", "polls", "reports"):
        app.extensions[f"arkloop.{name}"].close()
    opened.close()


@pytest.fixture(scope="module")
def open_app(settings: Settings) -> Iterator[Flask]:
    """The role is a superuser's, before whom there is no wall."""
    url = walls.as_user(settings.database_url, "postgres")
    with without_filters(replace(settings, database_url=url)) as app:
        yield app


@pytest.fixture(scope="module")
def walled_app(settings: Settings) -> Iterator[Flask]:
    with without_filters(
        replace(settings, database_url=walls.put_up(settings.database_url))
    ) as app:
        yield app


def through(app: Flask, user: User) -> User:
    return replace(user, client=app.test_client())


@pytest.mark.parametrize("path", LISTS)
def test_a_list_has_nothing_of_another_org(
    open_app: Flask,
    walled_app: Flask,
    alice: User,
    register: Register,
    ids: dict[str, str],
    path: str,
) -> None:
    """Without the wall the same list has the objects of others."""
    stranger = register()
    leaked = through(open_app, stranger).get(path)
    kept = through(walled_app, stranger).get(path)

    assert (200, 200) == (leaked.status_code, kept.status_code), kept.text
    assert any(one in leaked.text for one in ids.values()), "the fault has no effect"
    assert not any(one in kept.text for one in ids.values())


def test_nothing_is_found_by_an_id_of_another_org(
    app: Flask,
    open_app: Flask,
    walled_app: Flask,
    alice: User,
    register: Register,
    ids: dict[str, str],
) -> None:
    """Every operation answers as for an unknown id, and nothing changes."""
    stranger = register()
    unknown = {name: str(new_id()) for name in ids} | {"persona_id": "nobody@1"}
    leaks = 0
    before = shown(app, alice, ids)
    for rule in rules_of_orgs(app):
        named = set(rule.arguments) & set(ids) - {"response_id"}
        for route in sorted(routes_of(rule)) if named else ():
            if OF_PERSONS.search(route):
                continue
            method = route.split(" ")[0]
            body, query = BODIES.get(route), QUERIES.get(route, "")
            paths = [path_of(rule, these) + query for these in (ids, unknown)]
            if method == "GET" and not rule.rule.endswith("/events"):
                leaks += through(open_app, stranger).get(paths[0]).status_code == 200
            kept = through(walled_app, stranger)
            answers = [kept.call(method, path, json=body) for path in paths]
            assert 404 == answers[0].status_code, (route, answers[0].text)
            assert said(answers[1], unknown) == said(answers[0], ids), route

    assert leaks >= 10, "the fault has no effect"
    assert before == shown(app, alice, ids)


def test_the_queue_before_a_run_is_that_of_all_orgs(
    settings: Settings, register: Register, make_run: Callable[..., Any]
) -> None:
    """The number of others' runs is shown behind the wall as well."""
    alice, stranger = register(), register()
    make_run(stranger, stranger.thread(), RunState.QUEUED)
    run_id = make_run(alice, alice.thread(), RunState.QUEUED)
    url = walls.put_up(settings.database_url)
    opened = connect(replace(settings, database_url=url), application="tests-walled")

    with app_on(opened) as app:
        queue = (through(app, alice).get(f"/v1/runs/{run_id}").json or {})["queue"]
        why = (through(app, alice).get(f"/v1/runs/{run_id}:explain").json or {})["details"]

    assert queue["ahead_of_you"] >= 1
    assert queue["ahead_of_you"] == why["ahead_of_you"]


def test_a_thread_becomes_private_beside_one_in_another_org(
    settings: Settings,
    alice: User,
    register: Register,
    connections: Connections,
    make_run: Callable[..., Any],
) -> None:
    """The `external_id` that the user's private thread has there is given up by one below."""
    elsewhere = register().org_id
    thread_id, below = alice.thread(), alice.thread(external_id="chat-1")
    run_id = make_run(alice, thread_id)
    with connections.transaction() as tx:
        values = {"user_id": alice.id, "org_id": elsewhere, "role": "member"}
        tx.sql.execute(memberships.insert().values(**values))
        of_sub_run = threads.update().where(threads.c.id == UUID(below))
        tx.sql.execute(of_sub_run.values(parent_run_id=run_id))
        actor = replace(StoredRuns.of(connections, alice).actor, org_id=elsewhere)
        thread_rows.create(tx, actor, external_id="chat-1", is_private=True)
    url = walls.put_up(settings.database_url)
    opened = connect(replace(settings, database_url=url), application="tests-walled")

    with app_on(opened) as app:
        changed = through(app, alice).patch(f"/v1/threads/{thread_id}", {"is_private": True})
        seen = through(app, alice).get(f"/v1/threads/{below}").json

    assert 200 == changed.status_code, changed.text
    assert (True, None) == (seen["is_private"], seen["external_id"])


def test_runs_of_a_member_who_has_left_are_listed(
    app: Flask, settings: Settings, register: Register, make_run: Callable[..., Any]
) -> None:
    """Behind the wall the creator has no name, and older runs follow on the next page."""
    alice = register()
    bob, thread_id = register(org_of=alice, role="member"), alice.thread()
    made = [str(make_run(user, thread_id, RunState.COMPLETED)) for user in (alice, bob, alice)]
    assert 204 == alice.delete(f"/v1/orgs/{alice.org_id}/members/{bob.id}").status_code
    url = walls.put_up(settings.database_url)
    opened = connect(replace(settings, database_url=url), application="tests-walled")

    def listed(app: Flask, path: str) -> Iterator[dict[str, Any]]:
        query: str | None = "?limit=1"
        while query is not None:
            page = through(app, alice).get(path + query)
            yield from page.json or []
            cursor = page.headers.get("X-Next-Cursor")
            query = cursor and f"?limit=1&before={cursor}"

    with app_on(opened) as walled:
        for by, name in ((app, bob.login), (walled, None)):
            [_, bobs, _] = rows = list(listed(by, "/v1/runs"))
            assert made[::-1] == [row["run_id"] for row in rows]
            assert (str(bob.id), name) == (bobs["created_by_user_id"], bobs["created_by_user_name"])
            rows = list(listed(by, f"/v1/threads/{thread_id}/runs"))
            assert made[::-1] == [row["run_id"] for row in rows]
