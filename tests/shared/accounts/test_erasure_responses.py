"""The erasure of an end user from the responses that are stored for idempotency keys."""

from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.accounts import erasure
from arkloop.shared.ids import new_id
from arkloop.shared.storage import idempotency
from arkloop.shared.storage.connections import Connections, Transaction
from tests.clients import User
from tests.end_users import ANN, BOB, end_user
from tests.shared.accounts.test_erasure import ENDED, MakeRun, places_of
from tests.shared.accounts.test_erasure_shared_threads import erase
from tests.shared.accounts.test_erasure_shared_threads import thread as thread  # a fixture
from tests.shared.runs.busy_thread import BusyThread
from tests.shared.runs.delegated_runs import delegated


def test_no_response_is_repeated_to_an_erased_end_user(
    connections: Connections, alice: User
) -> None:
    """A token that is still valid gets none, whether a key or a login has issued it."""
    word = f"word-{new_id().hex}"
    issuers = [alice, alice.api_key()]
    ann, bob = end_user(alice, "ann"), end_user(alice, "bob")
    path, of_bob = (f"/v1/threads/{who.thread()}/messages" for who in (ann, bob))
    tokens = [
        end_user(issuer, "ann", **fields)
        for issuer in issuers
        for fields in ({}, {"thread": path.split("/")[3]})
    ]
    calls = [*((token, path, f"I am {word}.") for token in tokens), (bob, of_bob, "I am Bob.")]

    def say() -> list[int]:
        once = {"Idempotency-Key": "k"}
        made = [
            who.post(where, {"content": content}, headers=once) for who, where, content in calls
        ]
        return [response.status_code for response in made]

    assert [201] * 5 == say()
    erasure.erase_end_user(connections, alice.org_id, "ann")

    assert [] == places_of(connections, word)
    assert [404, 404, 404, 404, 201] == say()
    assert 1 == len(alice.get(of_bob).json)


@pytest.mark.parametrize("later", ["bob", None])
def test_no_response_is_left_of_a_token_for_a_thread_that_others_have_now(
    connections: Connections, alice: User, make_run: MakeRun, later: str | None
) -> None:
    """The thread is found by what the end user has said there."""
    word = f"word-{new_id().hex}"
    thread_id = end_user(alice, "ann").thread()
    path, once = f"/v1/threads/{thread_id}", {"Idempotency-Key": "k"}
    token = end_user(alice, "ann", thread=thread_id)
    token.post(f"{path}/messages", {"content": f"I am {word}."}, headers=once)
    make_run(alice, thread_id, end_user_id="ann", position=2, **ENDED)
    alice.patch(path, {"end_user_id": later})
    assert {"idempotency_keys", "messages"} == {*places_of(connections, word)}

    erasure.erase_end_user(connections, alice.org_id, "ann")

    assert [] == places_of(connections, word)


def test_responses_to_very_many_tokens_are_forgotten_apart(
    thread: BusyThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some in each transaction, and none while rows of the person are locked: there is one for each
    issuer and thread. The threads of others' sub-runs are not among them.
    """
    monkeypatch.setattr(erasure, "THREADS_AT_ONCE", 2)
    shared = [thread, *(BusyThread(thread.stored) for _ in range(2))]
    for each in shared:
        each.answer(each.say("Ann asks", end_user_id=ANN).run_id, "to Ann")
    parent = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    delegated(thread.stored, parent)
    forgotten: list[tuple[Transaction, list[UUID | None]]] = []

    def forget(tx: Transaction, *_: Any, thread_ids: list[UUID | None], **__: Any) -> None:
        forgotten.append((tx, thread_ids))

    monkeypatch.setattr(idempotency, "forget_end_user", forget)
    erase(thread)

    assert 3 == len({id(tx) for tx, _ in forgotten})
    *apart, last = [thread_ids for _, thread_ids in forgotten]
    assert [2, 1] == [len(thread_ids) for thread_ids in apart]
    assert {each.id for each in shared} == {id_ for thread_ids in apart for id_ in thread_ids}
    assert [None] == last
