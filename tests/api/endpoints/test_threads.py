"""`/v1/threads`."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, text

from arkloop.shared.ids import new_id, parse_id
from arkloop.shared.runs import visible_runs
from arkloop.shared.runs.states import ACTIVE, RunState
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User, details_of, error_of
from tests.stored_runs import add_copies

MakeRun = Callable[..., UUID]
NOT_FOUND = (404, "threads.not_found")


def test_a_thread_is_made_and_found(alice: User) -> None:
    """Every field of the contract, the same wherever it is asked for."""
    response = alice.post("/v1/threads", {"title": "Ideas", "is_private": True})
    made = dict(response.json or {})

    expected = {
        "id": made["id"],
        "org_id": str(alice.org_id),
        "created_by_user_id": str(alice.id),
        "title": "Ideas",
        "is_private": True,
        "end_user_id": None,
        "external_id": None,
        "metadata": {},
        "parent_run_id": None,
        "active_run_id": None,
        "on_busy": "reject",
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
    }
    assert (201, expected) == (response.status_code, made)
    assert parse_id(made["id"])
    assert f"/v1/threads/{made['id']}" == response.headers["Location"]
    assert expected == alice.get(response.headers["Location"]).json
    assert [expected] == alice.get("/v1/threads").json


@pytest.mark.parametrize("body", [None, {}, {"title": None}])
def test_a_thread_needs_nothing(alice: User, body: object) -> None:
    """No body, an empty one, no title: a public thread without a name."""
    thread = alice.post("/v1/threads", body).json

    assert thread is not None
    assert (None, False) == (thread["title"], thread["is_private"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"title": ""}, "title"),
        ({"title": "t" * 201}, "title"),
        ({"title": 1}, "title"),
        ({"title": ["a"]}, "title"),
        ({"is_private": None}, "is_private"),
        ({"is_private": "true"}, "is_private"),
        ({"is_private": 0}, "is_private"),
        ({"end_user_id": ""}, "end_user_id"),
        ({"end_user_id": "e" * 129}, "end_user_id"),
        ({"end_user_id": "a\nb"}, "end_user_id"),
        ({"end_user_id": 7}, "end_user_id"),
        ({"external_id": "e" * 129}, "external_id"),
        ({"external_id": "\x7f"}, "external_id"),
        ({"metadata": None}, "metadata"),
        ({"metadata": [["a", "b"]]}, "metadata"),
        ({"metadata": {"a b": "c"}}, "metadata.a b"),
        ({"metadata": {"": "c"}}, "metadata."),
        ({"metadata": {"k" * 65: "c"}}, f"metadata.{'k' * 65}"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "v" * 513}}, "metadata.a"),
        ({"metadata": {f"k{i}": "" for i in range(33)}}, "metadata"),
        ({"org_id": str(new_id())}, "org_id"),
        ({"id": str(new_id())}, "id"),
        ({"created_at": "2026-01-01T00:00:00Z"}, "created_at"),
    ],
)
def test_a_bad_thread_is_refused(alice: User, body: dict[str, object], field: str) -> None:
    """422 names the field, at creation and at change."""
    assert [field] == list(details_of(alice.post("/v1/threads", body)))
    assert [field] == list(details_of(alice.patch(f"/v1/threads/{alice.thread()}", body)))


@pytest.mark.parametrize("query", ["metadata=red", "metadata=red&metadata.team=red"])
def test_a_filter_by_metadata_names_a_key(alice: User, query: str) -> None:
    """A value without a key is refused, also beside one with a key."""
    assert ["metadata"] == list(details_of(alice.get(f"/v1/threads?{query}")))


def test_a_change_of_metadata_is_merged(alice: User) -> None:
    """Keys are set, and removed by null; those that are left out stay, as the end user does."""
    made = alice.post("/v1/threads", {"metadata": {"a": "1", "b": "2"}, "end_user_id": "x"}).json
    path = f"/v1/threads/{(made or {})['id']}"
    changed = alice.patch(path, {"metadata": {"a": None, "c": "☂" * 512, "gone": None}})

    assert {"b": "2", "c": "☂" * 512} == (changed.json or {})["metadata"]
    assert changed.json == alice.get(path).json
    assert "x" == (changed.json or {})["end_user_id"]
    assert None is (alice.patch(path, {"end_user_id": None}).json or {})["end_user_id"]


def test_a_thread_has_at_most_32_pairs_of_metadata(alice: User) -> None:
    """A change that would leave more is refused, and all of them can be replaced at once."""
    thread_id = alice.thread(metadata={f"k{i}": "" for i in range(32)})
    path = f"/v1/threads/{thread_id}"
    others = {f"k{i}": None for i in range(32)} | {f"n{i}": "" for i in range(32)}

    assert ["metadata"] == list(details_of(alice.patch(path, {"metadata": {"one.more": ""}})))
    assert 200 == alice.patch(path, {"metadata": others}).status_code
    assert 32 == len((alice.get(path).json or {})["metadata"])


def test_an_external_id_finds_its_thread(alice: User, register: Register) -> None:
    """The first POST creates the thread, later ones return it as it is, to all of the org."""
    bob = register("", org_of=alice)
    first = alice.post("/v1/threads", {"external_id": "chat/1 é", "title": "a"})
    again = bob.post("/v1/threads", {"external_id": "chat/1 é", "title": "b", "is_private": True})

    assert (201, 200) == (first.status_code, again.status_code)
    assert first.json == again.json
    assert ("a", "chat/1 é") == ((first.json or {})["title"], (first.json or {})["external_id"])
    assert "Location" not in again.headers


def test_an_external_id_is_of_one_org(alice: User, register: Register) -> None:
    """Two orgs have a thread each of the same id."""
    ids = {user.thread(external_id="x") for user in (alice, register())}

    assert 2 == len(ids)


def test_a_private_thread_is_not_revealed_by_its_external_id(
    alice: User, register: Register
) -> None:
    """Somebody else's POST creates a thread as if there was none; both keep finding their own."""
    bob = register("", org_of=alice)
    private = alice.thread(external_id="x", is_private=True)
    shared = bob.thread(external_id="x")

    assert private != shared
    assert shared == (bob.post("/v1/threads", {"external_id": "x"}).json or {})["id"]
    assert private == (alice.post("/v1/threads", {"external_id": "x"}).json or {})["id"]


def test_an_external_id_is_free_again_after_its_thread(alice: User) -> None:
    """A deleted thread does not exist, so its id makes a new one."""
    deleted = alice.thread(external_id="x")
    alice.delete(f"/v1/threads/{deleted}")

    assert deleted != alice.thread(external_id="x")


def test_an_external_id_that_is_taken_is_refused(alice: User) -> None:
    """A change to the id of another thread, or to where another has the id, is 409."""
    alice.thread(external_id="x")
    other = f"/v1/threads/{alice.thread()}"
    private = f"/v1/threads/{alice.thread(is_private=True)}"

    taken = alice.patch(other, {"external_id": "x"})
    assert (409, "names.taken") == error_of(taken)
    assert ["external_id"] == list((taken.json or {})["details"])
    assert 200 == alice.patch(private, {"external_id": "x"}).status_code
    assert (409, "names.taken") == error_of(alice.patch(private, {"is_private": False}))
    assert 200 == alice.patch(private, {"external_id": None, "is_private": False}).status_code


def test_a_title_has_up_to_200_characters(alice: User) -> None:
    """A title's length is counted in characters, not in bytes."""
    assert 201 == alice.post("/v1/threads", {"title": "☂" * 200}).status_code


def test_a_change_leaves_the_rest(alice: User) -> None:
    """A change sets the fields in the body and the time of the change, and nothing else."""
    before = alice.post("/v1/threads", {"title": "a"}).json or {}
    path = f"/v1/threads/{before['id']}"

    private = alice.patch(path, {"is_private": True}).json or {}
    assert ("a", True) == (private["title"], private["is_private"])
    untitled = alice.patch(path, {"title": None}).json or {}
    assert (None, True) == (untitled["title"], untitled["is_private"])
    assert before["updated_at"] < untitled["updated_at"]
    assert untitled == alice.patch(path, {}).json == alice.get(path).json


def test_a_change_needs_a_body(alice: User) -> None:
    """A change without a body gets 422."""
    response = alice.call("PATCH", f"/v1/threads/{alice.thread()}")

    assert ["body"] == list(details_of(response))


def test_a_deleted_thread_is_gone_and_its_rows_stay(alice: User, connections: Connections) -> None:
    """204, then 404 for it and all in it; an operator could bring it back."""
    thread = alice.thread()
    alice.say(thread)
    path = f"/v1/threads/{thread}"

    response = alice.delete(path)

    assert (204, b"") == (response.status_code, response.data)
    assert [] == alice.get("/v1/threads").json
    for answer in _all_calls(alice, thread):
        assert NOT_FOUND == error_of(answer)
    with connections.reading() as sql:
        count = text("SELECT count(*) FROM messages WHERE thread_id = :id")
        assert 1 == sql.scalar(count, {"id": thread})


@pytest.mark.parametrize("state", list(RunState))
def test_the_active_run_is_shown_and_keeps_the_thread(
    alice: User, make_run: MakeRun, state: RunState
) -> None:
    """Queued, executing and waiting are active: 409 with the run's id; ended ones are not, nor are
    those that have not started.
    """
    thread = alice.thread()
    run_id = str(make_run(alice, thread, state)) if state in ACTIVE else None
    if run_id is None:
        make_run(alice, thread, state)
    path = f"/v1/threads/{thread}"

    for shown in (alice.get(path).json, (alice.get("/v1/threads").json or [])[0]):
        assert run_id == (shown or {})["active_run_id"]
    response = alice.delete(path)
    if run_id is None:
        assert 204 == response.status_code
    else:
        assert (409, "runs.thread_busy") == error_of(response)
        assert {"active_run_id": run_id} == (response.json or {})["details"]


# ---- who sees and writes what --------------------------------------------------------


def test_another_orgs_thread_is_as_one_that_is_not_there(alice: User, register: Register) -> None:
    """The same answer for every call, but for its trace; and it is in no list."""
    stranger = register()
    thread = alice.thread()

    answers = zip(_all_calls(stranger, thread), _all_calls(stranger, str(new_id())), strict=True)
    for foreign, unknown in answers:
        assert NOT_FOUND == error_of(foreign)
        assert _without_trace(unknown.json) == _without_trace(foreign.json)
    assert [] == stranger.get("/v1/threads").json
    assert thread == (alice.get(f"/v1/threads/{thread}").json or {})["id"]


@pytest.mark.parametrize("role", ["owner", "admin", "member"])
def test_a_private_thread_is_its_creators_alone(alice: User, register: Register, role: str) -> None:
    """A private thread is invisible even to owners of the org."""
    colleague = register(org_of=alice, role=role)
    thread = alice.thread(is_private=True)

    assert {NOT_FOUND} == {error_of(answer) for answer in _all_calls(colleague, thread)}
    assert [] == colleague.get("/v1/threads").json
    assert 1 == len(alice.get("/v1/threads").json or [])


def test_a_thread_that_becomes_private_vanishes_for_others(alice: User, register: Register) -> None:
    """A thread that becomes private vanishes for others, and reappears when it is public again."""
    colleague = register(org_of=alice, role="member")
    path = f"/v1/threads/{alice.thread()}"

    statuses = []
    for is_private in (False, True, False):
        alice.patch(path, {"is_private": is_private})
        statuses.append(colleague.get(path).status_code)
    assert [200, 404, 200] == statuses


def test_members_read_all_and_write_their_own(alice: User, register: Register) -> None:
    """403 for what is somebody else's; owners and admins write all that they see."""
    member = register(org_of=alice, role="member")
    admin = register(org_of=alice, role="admin")
    hers, theirs = alice.thread(), member.thread()

    assert [200, 200] == [member.get(f"/v1/threads/{id_}").status_code for id_ in (hers, theirs)]
    change = {"title": "new"}
    assert (403, "auth.forbidden") == error_of(member.patch(f"/v1/threads/{hers}", change))
    assert (403, "auth.forbidden") == error_of(member.delete(f"/v1/threads/{hers}"))
    assert 200 == member.patch(f"/v1/threads/{theirs}", change).status_code
    for user in (admin, alice):
        assert 200 == user.patch(f"/v1/threads/{theirs}", change).status_code
    assert 204 == admin.delete(f"/v1/threads/{theirs}").status_code


def test_a_key_acts_as_its_user(alice: User, register: Register) -> None:
    """A member's key writes what the member writes."""
    key = register(org_of=alice, role="member").api_key("data.threads.write")

    assert 403 == key.delete(f"/v1/threads/{alice.thread()}").status_code
    assert 204 == key.delete(f"/v1/threads/{key.thread()}").status_code


def test_a_change_shows_the_thread_to_those_who_may_read_it(alice: User) -> None:
    """A key that writes alone is refused, and changes nothing; it gets a thread whose
    `external_id` it sends, as the contract says.
    """
    path = f"/v1/threads/{(thread := alice.thread(title='Hers', external_id='x'))}"
    writer = alice.api_key("data.threads.write")
    both = alice.api_key("data.threads.write", "data.threads.read")

    assert (403, "auth.forbidden") == error_of(writer.patch(path, {"title": "new"}))
    assert "Hers" == (alice.get(path).json or {})["title"]
    assert "new" == (both.patch(path, {"title": "new"}).json or {})["title"]
    found = writer.post("/v1/threads", {"external_id": "x"})
    assert (200, thread) == (found.status_code, (found.json or {})["id"])


def _all_calls(user: User, thread: str) -> list[Any]:
    path = f"/v1/threads/{thread}"
    return [
        user.get(path),
        user.patch(path, {"title": "x"}),
        user.delete(path),
        user.get(f"{path}/messages"),
        user.post(f"{path}/messages", {"content": "x"}),
    ]


def _without_trace(answer: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (answer or {}).items() if name != "trace_id"}


def test_threads_of_sub_runs_are_listed_by_their_run_alone(
    alice: User, make_run: MakeRun, connections: Connections
) -> None:
    """A list has the threads of people, unless those of the sub-runs of one run are asked for."""
    own = alice.thread()
    parent = make_run(alice, own)
    subs = [alice.thread(), alice.thread(is_private=True)]
    with connections.transaction() as tx:
        tx.sql.execute(
            text("UPDATE threads SET parent_run_id = :parent WHERE id = ANY(:subs)"),
            {"parent": parent, "subs": [UUID(sub) for sub in subs]},
        )

    def listed(query: str = "") -> list[str]:
        return [thread["id"] for thread in alice.get(f"/v1/threads{query}").json or []]

    assert [own] == listed()
    assert subs[::-1] == listed(f"?parent_run_id={parent}")
    assert [] == listed(f"?parent_run_id={new_id()}")
    assert [] == listed(f"?parent_run_id={parent}&end_user_id=somebody")
    assert ["parent_run_id"] == list(details_of(alice.get("/v1/threads?parent_run_id=x")))


def test_a_thread_of_very_many_runs_is_changed_and_deleted(
    alice: User,
    make_run: MakeRun,
    register: Register,
    connections: Connections,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """503 says that the change to private is under way. Another request takes it back; sent again,
    the same one completes it.
    """
    other, thread = register(org_of=alice, role="member"), alice.thread()
    run_id = make_run(alice, thread, RunState.COMPLETED, ended_at=func.now())
    add_copies(connections, run_id, visible_runs.WRITTEN_WITH_THREAD)
    path = f"/v1/threads/{thread}"
    monkeypatch.setattr(visible_runs, "REQUEST_SECONDS", -1)

    response = alice.patch(path, {"is_private": True})
    assert (503, "service.unavailable") == error_of(response)
    assert "Send the request again" in (response.json or {})["message"]
    assert "1" == response.headers["Retry-After"]
    assert 200 == other.get(path).status_code

    monkeypatch.setattr(visible_runs, "REQUEST_SECONDS", 60)
    left = visible_runs.WRITTEN_WITH_THREAD + 1 - visible_runs.WRITTEN_AT_ONCE
    assert left == len(other.get("/v1/runs?limit=200").json)
    assert 200 == alice.patch(path, {"is_private": False}).status_code
    assert 200 == len(other.get("/v1/runs?limit=200").json)
    assert 200 == alice.patch(path, {"is_private": True}).status_code
    assert [404, []] == [other.get(path).status_code, other.get("/v1/runs").json]
    assert 200 == alice.patch(path, {"is_private": False}).status_code
    assert 204 == alice.delete(path).status_code
    assert [] == alice.get("/v1/runs").json
