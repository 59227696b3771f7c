"""The export and the erasure of a user, and of an end user of an org."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, text, update

from arkloop.shared.accounts import accounts, erasure
from arkloop.shared.accounts.erasure import RunsGoOn
from arkloop.shared.billing import budget_limits
from arkloop.shared.billing.spending import end_user_scope
from arkloop.shared.catalog import mcp_access
from arkloop.shared.errors import LastOwner
from arkloop.shared.events.prompts import Encoder
from arkloop.shared.ids import new_id
from arkloop.shared.runs import retention, sweep
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables import metadata
from arkloop.shared.storage.tables.accounts import api_keys, orgs, users
from arkloop.shared.storage.tables.billing import run_usage
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.files import files
from arkloop.shared.storage.tables.runs import forgotten_events, inputs
from arkloop.shared.storage.tables.threads import thread_contexts
from tests.clients import PASSWORD, Register, User
from tests.end_users import end_user
from tests.leaks import prompts_in

ENDED = {"state": RunState.COMPLETED, "ended_at": func.now()}
#: `make_run(user, thread_id, state, **columns)`
MakeRun = Callable[..., UUID]


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for the end of runs and of access that are over at once."""
    monkeypatch.setattr(erasure, "RUNS_END_SECONDS", 0)
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)


def places_of(connections: Connections, word: str) -> list[str]:
    """Return the tables that have a row with this word, after deleted runs were collected."""
    with connections.transaction() as tx:
        tx.sql.execute(
            update(forgotten_events).values(collect_at=func.now() - text("interval '1h'"))
        )
    retention.forget(connections)
    with connections.reading() as sql:
        query = "SELECT EXISTS (SELECT FROM {0} WHERE {0}::text ILIKE :word)"
        found = [
            name
            for name in metadata.tables
            if sql.scalar(text(query.format(name)), {"word": f"%{word}%"})
        ]
        opened = sql.connection.driver_connection
        assert opened is not None
        is_prompted = word.encode() in prompts_in(opened)
    return [*found, "prompts"] if is_prompted else found


def add_file(connections: Connections, user: User, end_user_id: str | None, name: str) -> UUID:
    file_id = new_id()
    values = {"org_id": user.org_id, "created_by_user_id": user.id, "end_user_id": end_user_id}
    facts = {"media_type": "text/plain", "size": 1, "sha256": "0" * 64, "stored_at": func.now()}
    with connections.transaction() as tx:
        tx.sql.execute(insert(files).values(id=file_id, name=name, **values, **facts))
    return file_id


def attach(user: User, thread_id: str, *file_ids: UUID) -> None:
    parts = [{"type": "file", "file_id": str(file_id)} for file_id in file_ids]
    said = user.post(f"/v1/threads/{thread_id}/messages", {"content": parts})
    assert 201 == said.status_code, said.text


def files_of(user: User, *file_ids: UUID) -> list[bool]:
    """Return which of the files exist."""
    return [200 == user.get(f"/v1/files/{file_id}").status_code for file_id in file_ids]


def add_grant(connections: Connections, user: User, owner: str) -> None:
    made = user.post("/v1/mcp-configs", {"name": "vault", "url": "https://mcp.example.com/mcp"})
    assert made.json is not None, made.text
    of = (user.org_id, UUID(made.json["id"]), owner)
    with connections.transaction() as tx:
        mcp_access.expect_grant(tx, *of)
        mcp_access.store_grant(tx, *of, {"obtained_at": 1.0, "tokens": {"access_token": "canary"}})


def add_event(
    connections: Connections, run_id: UUID, content: str, prompt: str | None = None
) -> None:
    stored = None if prompt is None else Encoder().encode({}, prompt.encode())
    with connections.transaction() as tx:
        values = {"run_id": run_id, "seq": 1, "type": "message.delta", "payload": content}
        tx.sql.execute(insert(run_events).values(**values, prompts=stored))


def kinds(entries: list[dict[str, Any]]) -> list[str]:
    return sorted(str(entry["type"]) for entry in entries)


@pytest.fixture
def ann(connections: Connections, alice: User, make_run: MakeRun) -> str:
    """An end user of whom there is something in every place; returns the id, a rare word."""
    word = f"person-{new_id().hex}"
    client = end_user(alice, word)
    thread_id = client.thread(title=f"{word} title", external_id=word)
    client.say(thread_id, f"I am {word}.")
    run_id = make_run(alice, thread_id, end_user_id=word, position=2, **ENDED)
    add_event(connections, run_id, word)
    with connections.transaction() as tx:
        values = {"run_id": run_id, "request_id": new_id(), "created_by_user_id": alice.id}
        tx.sql.execute(insert(inputs).values(content=f"I live in {word}.", **values))
    # A run in a thread of nobody's, with the message that it answers.
    shared_thread = alice.thread(title="Everybody")
    alice.say(shared_thread, f"{word} asks")
    make_run(alice, shared_thread, end_user_id=word, position=2, **ENDED)
    alice.post(f"/v1/threads/{shared_thread}/messages", {"content": "somebody else asks"})
    # What that run says is in prompts of later ones and of their sub-runs, and in a summary.
    later = make_run(alice, shared_thread, position=4, **ENDED)
    add_event(connections, later, "an answer", f"{word} asks, and somebody else")
    task = make_run(alice, alice.thread(title="Task"), parent_run_id=later, position=1, **ENDED)
    add_event(connections, task, "a result", f"Look {word} up.")
    with connections.transaction() as tx:
        point = {"window_tokens": 0, "upto_position": 2, "upto_seq": 1, "dropped_messages": 2}
        point |= {"thread_id": UUID(shared_thread), "summary": f"{word} asked."}
        tx.sql.execute(insert(thread_contexts).values(**point))
    # A sub-run, whose thread has no end user.
    below = alice.thread(title=f"sub-run for {word}")
    make_run(alice, below, end_user_id=word, parent_run_id=run_id, position=1, **ENDED)
    with connections.transaction() as tx:
        parent = text("UPDATE threads SET parent_run_id = :run WHERE id = :id")
        tx.sql.execute(parent, {"run": run_id, "id": below})
        usage = {"run_id": run_id, "route_id": "r", "org_id": alice.org_id, "user_id": alice.id}
        usage |= {"persona_key": "a", "model": "m", "usage_source": "reported", "cost_usd": 1}
        month = func.date_trunc("month", func.now())
        tx.sql.execute(insert(run_usage).values(**usage, month=month, end_user_id=word))
    add_file(connections, alice, word, f"{word}.txt")
    add_grant(connections, alice, mcp_access.owner_of(word, None))
    url, reached = "https://hooks.example.com/", ["budget.threshold_reached"]
    alice.post("/v1/webhook-endpoints", {"url": url, "event_types": reached})
    limits = {"max_cost_usd": None, "max_cost_usd_per_month": Decimal(1)}
    with connections.transaction() as tx:
        budget_limits.set_(tx, alice.org_id, end_user_scope(word), **limits)
    places = {*places_of(connections, word)}
    assert {"budgets", "prompts", "spending", "thread_contexts", "webhook_deliveries"} <= places
    return word


def test_nothing_of_an_erased_end_user_is_left(
    connections: Connections, alice: User, ann: str
) -> None:
    """No table contains the id or the texts; amounts, and others' messages, stay."""
    bob = end_user(alice, "bob")
    kept = bob.thread(title="Bob's")

    record = erasure.erase_end_user(connections, alice.org_id, ann)

    [entry] = alice.get("/v1/audit-logs?action=end_user.erased").json
    assert ("operator", str(record["id"])) == (entry["actor"]["type"], entry["target"]["id"])
    counts = [record[name] for name in ("threads", "messages", "runs", "files")]
    assert [2, 2, 3, 1] == counts
    assert ("end_user", alice.org_id, None) == (record["kind"], record["org_id"], record["user_id"])
    with connections.transaction() as tx:  # what the loop does once the bytes are gone
        tx.sql.execute(files.delete().where(files.c.expires_at <= func.now()))
    assert [] == places_of(connections, ann)
    assert ["Bob's", "Everybody", "Task"] == sorted(
        thread["title"] for thread in alice.get("/v1/threads").json
    )
    assert 200 == bob.get(f"/v1/threads/{kept}").status_code
    assert ["messages"] == places_of(connections, "somebody else asks")
    with connections.reading() as sql:
        cost = select(run_usage.c.cost_usd).where(run_usage.c.org_id == alice.org_id)
        assert [1] == sql.scalars(cost).all()


def test_prompts_from_before_an_erased_end_user_stay(
    connections: Connections, alice: User, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of other threads stay, too; all later ones go, even if they take several
    transactions.
    """
    monkeypatch.setattr(erasure, "RUNS_AT_ONCE", 2)
    thread_id, other = alice.thread(), alice.thread()
    before, elsewhere, *later = [
        make_run(alice, thread, position=position, **ENDED)
        for thread, position in [(thread_id, 2), (other, 9), *((thread_id, n) for n in range(6, 9))]
    ]
    make_run(alice, thread_id, end_user_id="ann", position=4, **ENDED)
    words = {run_id: f"prompt-{run_id.hex}" for run_id in (before, elsewhere, *later)}
    for run_id, word in words.items():
        add_event(connections, run_id, "an answer", word)

    erasure.erase_end_user(connections, alice.org_id, "ann")

    left = {run_id for run_id, word in words.items() if places_of(connections, word)}
    assert {before, elsewhere} == left


def test_an_end_user_of_the_same_id_in_another_org_stays(
    connections: Connections, alice: User, register: Register
) -> None:
    """Ids of end users are the org's own."""
    stranger = register()
    thread_id = end_user(stranger, "ann").thread()

    assert 0 == erasure.erase_end_user(connections, alice.org_id, "ann")["threads"]
    assert 200 == stranger.get(f"/v1/threads/{thread_id}").status_code


def test_an_export_has_all_of_an_end_user(connections: Connections, alice: User, ann: str) -> None:
    """Threads, messages, runs, answers to them and files, and nothing of others."""
    end_user(alice, "bob").thread()
    entries = list(erasure.export_end_user(connections, alice.org_id, ann))

    of_threads = ["message", "message", "run", "run", "run", "thread", "thread"]
    assert ["answer", "file", *of_threads] == kinds(entries)
    assert {"completed"} == {entry["status"] for entry in entries if entry["type"] == "run"}


def test_files_that_a_server_has_sent_for_an_end_user_are_theirs(
    connections: Connections, alice: User, make_run: MakeRun
) -> None:
    """They have no end user: what only threads and messages of the end user name is theirs."""
    names = ("in two threads", "in a message", "of everybody", "in a deleted thread")
    own, single, manual, deleted = (add_file(connections, alice, None, name) for name in names)
    bobs = add_file(connections, alice, "bob", "of Bob")
    own_threads = [alice.thread(end_user_id="ann") for _ in range(2)]
    attach(alice, own_threads[0], own, manual, bobs)
    attach(alice, own_threads[1], own, deleted)
    shared, gone = alice.thread(), alice.thread()
    attach(alice, shared, single)
    make_run(alice, shared, end_user_id="ann", position=2, **ENDED)
    attach(alice, shared, manual)
    attach(alice, gone, deleted)
    alice.delete(f"/v1/threads/{gone}")

    entries = list(erasure.export_end_user(connections, alice.org_id, "ann"))
    record = erasure.erase_end_user(connections, alice.org_id, "ann")

    exported = [entry["name"] for entry in entries if entry["type"] == "file"]
    assert ["in two threads", "in a message", "in a deleted thread"] == exported
    assert 3 == record["files"]
    of_all = files_of(alice, own, single, deleted, manual, bobs)
    assert [False, False, False, True, True] == of_all


def test_a_file_of_an_erased_user_stays_in_a_shared_thread(
    connections: Connections, alice: User, bob: User
) -> None:
    """What is named in private threads alone goes with them."""
    private = bob.thread(is_private=True)
    plan, diary = (add_file(connections, bob, None, name) for name in ("plan", "diary"))
    attach(bob, private, plan, diary)
    attach(bob, bob.thread(), plan)

    erasure.erase_user(connections, bob.id)

    assert [True, False] == files_of(alice, plan, diary)


def test_an_active_run_is_cancelled_first(
    connections: Connections, alice: User, make_run: MakeRun
) -> None:
    """Its thread is erased once it has ended, by the same command again if it takes too long."""
    thread_id = end_user(alice, "ann").thread()
    run_id = make_run(alice, thread_id, RunState.QUEUED, end_user_id="ann")

    with pytest.raises(RunsGoOn):
        erasure.erase_end_user(connections, alice.org_id, "ann")
    assert "cancelling" == alice.get(f"/v1/runs/{run_id}").json["phase"]
    sweep.sweep(connections)
    record = erasure.erase_end_user(connections, alice.org_id, "ann")

    assert [1, 1] == [record[name] for name in ("threads", "runs")]
    assert 404 == alice.get(f"/v1/runs/{run_id}").status_code


@pytest.fixture
def bob(connections: Connections, alice: User, register: Register) -> User:
    """A member of alice's org with a rare login, of whom there is something in every place."""
    bob = register(f"person-{new_id().hex}", org_of=alice, role="admin")
    bob.post("/v1/api-keys", {"name": f"{bob.login}'s key"}, headers={"Idempotency-Key": "k"})
    path = f"/v1/orgs/{alice.org_id}/invitations"
    bob.post(path, {"name": f"a friend of {bob.login}", "role": "member"})
    private = bob.thread(title=f"{bob.login}'s diary", is_private=True)
    file_id = add_file(connections, bob, None, f"{bob.login}.txt")
    part = {"type": "file", "file_id": str(file_id)}
    content = [{"type": "text", "text": f"I am {bob.login}"}, part]
    said = bob.post(f"/v1/threads/{private}/messages", {"content": content})
    assert 201 == said.status_code, said.text
    add_grant(connections, bob, mcp_access.owner_of(None, bob.id))
    return bob


def test_nothing_of_an_erased_user_is_left_but_what_was_shared(
    connections: Connections, alice: User, bob: User
) -> None:
    """Access ends, the private is gone, and shared threads stay in the org without a name."""
    key, shared = bob.api_key(), bob.thread(title="Plans")
    bob.say(shared, "We begin on Monday.")

    record = erasure.erase_user(connections, bob.id)

    [entry] = alice.get("/v1/audit-logs?action=user.erased").json
    assert ("operator", str(bob.id)) == (entry["actor"]["type"], entry["target"]["id"])
    assert [1, 1, 0, 1] == [record[name] for name in ("threads", "messages", "runs", "files")]
    assert ("user", None, bob.id) == (record["kind"], record["org_id"], record["user_id"])
    with connections.transaction() as tx:
        tx.sql.execute(files.delete().where(files.c.expires_at <= func.now()))
        erased = tx.sql.execute(select(users).where(users.c.id == bob.id)).one()
        revoked = select(api_keys.c.revoked_at).where(api_keys.c.user_id == bob.id)
        assert None not in tx.sql.scalars(revoked).all()
    assert [f"@erased-{bob.id}"] * 2 == [erased.login, erased.email]
    assert [] == places_of(connections, bob.login)
    assert "mcp_grants" not in places_of(connections, str(bob.id))
    alice.client.application.extensions["arkloop.auth"].forget()  # what 2 s do
    assert [401, 401] == [who.get("/v1/me").status_code for who in (bob, key)]
    for login in (bob.login, erased.login):
        body = {"login": login, "password": PASSWORD}
        assert 401 == bob.client.post("/v1/auth/login", json=body).status_code
    assert 200 == alice.get(f"/v1/threads/{shared}").status_code


def test_no_other_login_prevents_an_erasure(
    connections: Connections, register: Register, bob: User
) -> None:
    """What stands in place of the names can be registered neither as a login nor as an email."""
    register(f"erased-{bob.id}")
    erasure.erase_user(connections, bob.id)

    with connections.reading() as sql:
        name = sql.scalars(select(users.c.email).where(users.c.id == bob.id)).one()
    assert {"login", "email"} == set(accounts.problems_of(login=name, email=name))


def test_an_export_has_the_account_and_what_it_has_created(
    connections: Connections, bob: User
) -> None:
    """No hash and no secret is part of it."""
    bob.thread(title="For a customer", end_user_id="customer")
    entries = list(erasure.export_user(connections, bob.id))

    expected = ["api_key", "login", "membership", "message", "thread", "user"]
    assert expected == kinds(entries)
    assert bob.login == entries[0]["login"]
    assert not [name for entry in entries for name in entry if "hash" in name]


def test_the_last_owner_of_others_is_not_erased(
    connections: Connections, alice: User, register: Register
) -> None:
    """Nothing of them has changed; an owner who is alone is erased with the org's name."""
    member = register(org_of=alice, role="member")
    with pytest.raises(LastOwner):
        erasure.erase_user(connections, alice.id)
    assert 200 == alice.get("/v1/me").status_code

    alice.delete(f"/v1/orgs/{alice.org_id}/members/{member.id}")
    erasure.erase_user(connections, alice.id)

    assert [] == places_of(connections, alice.login)
    with connections.reading() as sql:
        assert "erased" == sql.scalar(select(orgs.c.name).where(orgs.c.id == alice.org_id))
        assert [] == accounts.orgs_of(sql, alice.id)
