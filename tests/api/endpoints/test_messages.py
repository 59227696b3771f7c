"""`/v1/threads/{id}/messages`."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import insert, text

from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.threads import messages
from tests.clients import Register, User, details_of, error_of
from tests.waiting import in_parallel

MakeRun = Callable[..., UUID]


def contents(user: User, thread: str, query: str = "") -> list[str]:
    listed = user.get(f"/v1/threads/{thread}/messages{query}").json or []
    return [message["content"] for message in listed]


def test_a_message_is_made_and_listed(alice: User) -> None:
    """It has every field of the contract, the user's own role, and no run."""
    thread = alice.thread()
    response = alice.post(f"/v1/threads/{thread}/messages", {"content": "Hello 🌍\n"})
    made = dict(response.json or {})

    expected = {
        "id": made["id"],
        "org_id": str(alice.org_id),
        "thread_id": thread,
        "run_id": None,
        "created_by_user_id": str(alice.id),
        "role": "user",
        "content": "Hello 🌍\n",
        "metadata": {},
        "partial": False,
        "created_at": made["created_at"],
    }
    assert (201, expected) == (response.status_code, made)
    assert [expected] == alice.get(f"/v1/threads/{thread}/messages").json


def test_the_latest_page_is_in_the_order_of_the_conversation(alice: User) -> None:
    """Going back leads to older pages, each in its order."""
    thread = alice.thread()
    for number in range(5):
        alice.say(thread, str(number))
    path = f"/v1/threads/{thread}/messages?limit=2"

    pages = []
    while True:
        response = alice.get(path)
        pages.append([message["content"] for message in response.json or []])
        cursor = response.headers.get("X-Next-Cursor")
        if cursor is None:
            break
        path = f"/v1/threads/{thread}/messages?limit=2&before={cursor}"
    assert [["3", "4"], ["1", "2"], ["0"]] == pages


def test_the_order_is_a_position_not_the_clock(alice: User, connections: Connections) -> None:
    """A clock that goes back changes nothing."""
    thread = alice.thread()
    for number in range(3):
        message = alice.say(thread, str(number))
        with connections.transaction() as tx:
            earlier = (
                "UPDATE messages SET created_at = now() - :n * interval '1 day' WHERE id = :id"
            )
            tx.sql.execute(text(earlier), {"n": number, "id": message})

    assert ["0", "1", "2"] == contents(alice, thread)


def test_messages_at_once_all_get_a_place(alice: User) -> None:
    """Concurrent messages are all stored, each with a position of its own."""
    thread = alice.thread()
    app = alice.client.application

    def say(number: int) -> str:
        user = User(app.test_client(), alice.login, alice.id, alice.org_id, alice.token)
        return user.say(thread, str(number))

    ids = in_parallel(10, say)

    assert 10 == len(set(ids))
    assert sorted(map(str, range(10))) == sorted(contents(alice, thread))


@pytest.mark.parametrize("size", [1, 262_144])
def test_content_has_up_to_256_kib(alice: User, size: int) -> None:
    """The limit of a message is 256 KiB, in bytes, also for blank text."""
    thread = alice.thread()

    assert alice.say(thread, " " * size)
    assert [" " * size] == contents(alice, thread)


@pytest.mark.parametrize(
    "content", ["", "x" * 262_145, "€" * 87_382, "a\0b", "\ud800", None, 1, [], {"text": "a"}]
)
def test_bad_content_is_refused(alice: User, content: object) -> None:
    """422 names the field: empty, too long in bytes, not text, not storable."""
    response = alice.post(f"/v1/threads/{alice.thread()}/messages", {"content": content})

    assert ["content"] == list(details_of(response))


@pytest.mark.parametrize("field", ["role", "run_id", "partial", "position", "created_by_user_id"])
def test_a_client_sets_the_content_alone(alice: User, field: str) -> None:
    """A client cannot add messages as the assistant or as another user."""
    body = {"content": "a", field: "assistant"}

    response = alice.post(f"/v1/threads/{alice.thread()}/messages", body)

    assert [field] == list(details_of(response))


def test_a_message_is_accepted_while_a_run_is_active(alice: User, make_run: MakeRun) -> None:
    """201: the next run will see it."""
    thread = alice.thread()
    make_run(alice, thread, RunState.EXECUTING)

    assert alice.say(thread)


def test_an_assistants_message_stands_where_its_run_was_made(
    alice: User, make_run: MakeRun, connections: Connections
) -> None:
    """An assistant's message comes before messages sent while its run executed; superseded ones are
    omitted.
    """
    thread = alice.thread()
    alice.say(thread, "question")
    with connections.transaction() as tx:
        advance = "UPDATE threads SET next_position = next_position + 2 WHERE id = :id"
        tx.sql.execute(text(advance), {"id": thread})
    run_id = make_run(alice, thread, RunState.COMPLETED, position=3)
    alice.say(thread, "afterthought")
    with connections.transaction() as tx:
        common = {"org_id": alice.org_id, "thread_id": UUID(thread), "role": "assistant"}
        for position, content, superseded in ((2, "first try", "now()"), (3, "answer", None)):
            values = {**common, "id": new_id(), "position": position, "content": content}
            values |= {"run_id": run_id, "partial": True}
            values["superseded_at"] = text(superseded) if superseded else None
            tx.sql.execute(insert(messages).values(values))

    assert ["question", "answer", "afterthought"] == contents(alice, thread)
    answer = (alice.get(f"/v1/threads/{thread}/messages").json or [])[1]
    shown = (answer["role"], answer["run_id"], answer["partial"], answer["created_by_user_id"])
    assert ("assistant", str(run_id), True, None) == shown


def test_a_message_moves_the_thread(alice: User) -> None:
    """`updated_at` tells when something was last said."""
    thread = alice.thread()
    before = (alice.get(f"/v1/threads/{thread}").json or {})["updated_at"]
    alice.say(thread)

    assert before < (alice.get(f"/v1/threads/{thread}").json or {})["updated_at"]


def test_members_speak_in_their_own_threads(alice: User, register: Register) -> None:
    """Members read threads of others, and get 403 for writing to them."""
    member = register(org_of=alice, role="member")
    thread = alice.thread()
    alice.say(thread, "read me")

    assert ["read me"] == contents(member, thread)
    response = member.post(f"/v1/threads/{thread}/messages", {"content": "a"})
    assert (403, "auth.forbidden") == error_of(response)
    assert ["read me"] == contents(alice, thread)


def test_a_message_and_its_thread_do_not_wait_for_others(
    alice: User, connections: Connections
) -> None:
    """Threads are independent: one that is locked holds up no other."""
    locked, free = alice.thread(), alice.thread()
    with connections.transaction() as tx:
        tx.sql.execute(text("SELECT 1 FROM threads WHERE id = :id FOR UPDATE"), {"id": locked})

        assert alice.say(free)
