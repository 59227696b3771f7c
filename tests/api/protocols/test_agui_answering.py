"""Messages of AG-UI that are sent again after others have changed what answers them."""

from typing import Any

import pytest

from arkloop.api.protocols.agui_requests import MESSAGE_ID
from arkloop.shared.ids import new_id
from tests.api.endpoints.made_providers import PATH, made
from tests.api.protocols.test_agui_runs import LATER, SAID, all_runs, first_cursor, newest, send
from tests.api.protocols.test_agui_threads import answered, contents, snapshot
from tests.api.protocols.test_ai_sdk_retries import forget
from tests.api.protocols.test_responses_repeats_steered import deliver
from tests.api.protocols.test_sent_files import expiring
from tests.clients import User
from tests.stored_runs import StoredRuns

TEXT = {"type": "text", "text": "What is it?"}
FILE: dict[str, Any] = {
    "type": "document",
    "source": {"type": "data", "value": "aGVsbG8=", "mimeType": "text/plain"},
}
WITH_FILE = {"id": "m1", "role": "user", "content": [TEXT, FILE]}


def test_a_message_is_sent_again_though_the_default_route_has_changed(
    alice: User, stored: StoredRuns
) -> None:
    """The agent of no route has the run that it began; one that names the new route has its own."""
    send(alice, SAID).close()
    [run_id] = all_runs(stored)
    models = f"{PATH}/{made(alice)['id']}/models"
    new = made(alice, models, is_default=True)["route_id"]

    shown = [first_cursor(send(alice, SAID, query=q)) for q in ("", f"?route_id={new}", "")]

    [known, other] = all_runs(stored)
    assert known == run_id
    assert [f"{one}.0.1" for one in (run_id, other, run_id)] == shown


@pytest.mark.parametrize("is_pending", [False, True])
def test_a_message_with_a_file_is_sent_again(
    alice: User, stored: StoredRuns, is_pending: bool
) -> None:
    """Its base64 is stored with each request, and kept once; another file is another message."""
    if is_pending:
        send(alice, LATER).close()
    send(alice, WITH_FILE).close()
    run_ids = all_runs(stored)

    shown = [first_cursor(send(alice, WITH_FILE)) for _ in range(2)]

    assert [f"{run_ids[-1]}.0.1"] * 2 == shown
    assert run_ids == all_runs(stored)
    # Those that were not used are removed.
    assert [False, True, True] == expiring(stored.connections, alice)
    other = {**FILE, "source": {**FILE["source"], "value": "d29ybGQ="}}
    send(alice, {**WITH_FILE, "content": [TEXT, other]}).close()
    assert 1 + len(run_ids) == len(all_runs(stored))


@pytest.mark.parametrize(("data", "runs"), [("aGVsbG8=", 1), ("d29ybGQ=", 2)])
def test_a_message_with_a_file_is_sent_again_beside_a_cancel(
    alice: User, stored: StoredRuns, data: str, runs: int
) -> None:
    """Its base64 is stored anew with the reply; another file makes it another message."""
    send(alice, WITH_FILE).close()
    [run_id] = all_runs(stored)
    stored.park(stored.held(run_id), request_id := new_id())
    resume = [{"interruptId": str(request_id), "status": "cancelled"}]
    file = {**FILE, "source": {**FILE["source"], "value": data}}

    shown = first_cursor(send(alice, {**WITH_FILE, "content": [TEXT, file]}, resume=resume))

    assert runs == len(all_runs(stored))
    assert (f"{run_id}.1.1" if runs == 1 else f"{newest(stored)}.0.1") == shown


def test_a_message_whose_file_was_deleted_is_sent_again(alice: User, stored: StoredRuns) -> None:
    """The message keeps the digest of its file."""
    send(alice, WITH_FILE).close()
    [run_id] = all_runs(stored)
    [[_, document]] = contents(alice)
    assert 204 == alice.delete(f"/v1/files/{document['source']['value']}").status_code

    shown = first_cursor(send(alice, WITH_FILE))

    assert f"{run_id}.0.1" == shown
    assert [run_id] == all_runs(stored)


def test_a_message_that_did_not_come_by_agui_is_sent_again(alice: User, stored: StoredRuns) -> None:
    """A page is shown it under the id of its row, which counts in its own thread alone."""
    ids = []
    for external_id in ("chat-1", "chat-0"):
        ids.append(alice.say(thread_id := alice.thread(external_id=external_id), SAID["content"]))
        assert 201 == alice.post(f"/v1/threads/{thread_id}/runs").status_code
    run_id, _ = all_runs(stored)

    shown = [first_cursor(send(alice, {**SAID, "id": id_}, tools=[])) for id_ in ids]

    assert [f"{run_id}.0.1", f"{newest(stored)}.0.1"] == shown
    assert 3 == len(all_runs(stored))


def test_a_message_by_rest_is_sent_again_whatever_route_its_run_has(
    alice: User, stored: StoredRuns
) -> None:
    """A page that names no route means the same agent, to which a connect assigns the answer."""
    route_id = made(alice, f"{PATH}/{made(alice)['id']}/models")["route_id"]
    said = {**SAID, "id": alice.say(thread_id := alice.thread(external_id="chat-1"), "Hello")}
    asked = alice.post(f"/v1/threads/{thread_id}/runs", {"route_id": route_id})
    assert 201 == asked.status_code, asked.text
    [run_id] = all_runs(stored)

    shown = first_cursor(send(alice, said, tools=[]))

    assert f"{run_id}.0.1" == shown
    assert [run_id] == all_runs(stored)


@pytest.mark.parametrize("is_first", [False, True])
def test_a_message_is_sent_again_under_the_other_of_its_ids(
    alice: User, stored: StoredRuns, is_first: bool
) -> None:
    """A page has the one under which it was sent, another page the one that a connect shows.

    A connect shows another one because of a message with other content under the first.
    """
    for content in ("Hello", "Bye", "Again"):
        answered(alice, stored, {**SAID, "content": content}, "One")
    _, _, second, _, third, _ = snapshot(alice, "chat-1")
    answered(alice, stored, {**second, "content": "Well?"}, "Two")
    ids = [SAID["id"], second["id"], third["id"], snapshot(alice, "chat-1")[-2]["id"]]
    assert 4 == len(set(ids))
    said = [{**SAID, "content": "Well?", "id": id_} for id_ in ids]
    if is_first:
        said.reverse()
    send(alice, said[0]).close()
    run_ids = all_runs(stored)

    shown = [first_cursor(send(alice, one)) for one in said]

    assert [f"{run_ids[-1]}.0.1"] * 4 == shown
    assert run_ids == all_runs(stored)


def test_a_message_that_another_has_joined_is_sent_again(alice: User, stored: StoredRuns) -> None:
    """Its run waits for its turn, and answers both: the message is in the thread once."""
    send(alice, SAID, tools=[]).close()
    send(alice, LATER, tools=[]).close()
    [_, waiting] = all_runs(stored)
    thread_id = alice.get(f"/v1/runs/{waiting}").json["thread_id"]
    more = {"message": "And one more.", "on_busy": "merge"}
    merged = alice.post(f"/v1/threads/{thread_id}/runs", json=more)
    assert str(waiting) == merged.json["run_id"]

    shown = first_cursor(send(alice, SAID, LATER, tools=[]))

    assert f"{waiting}.0.1" == shown
    assert 2 == len(all_runs(stored))


def test_a_message_whose_answered_run_was_deleted_has_a_new_run(
    alice: User, stored: StoredRuns
) -> None:
    """The retention keeps the message with its answer: it is none of those of the next run."""
    send(alice, SAID, tools=[]).close()
    [answered] = all_runs(stored)
    assert stored.finish(stored.held(answered), message=(new_id(), "The answer"))
    forget(stored.connections, answered)
    send(alice, LATER, tools=[]).close()
    [later] = all_runs(stored)

    shown = first_cursor(send(alice, SAID, tools=[]))

    [_, new] = all_runs(stored)
    assert f"{new}.0.1" == shown != f"{later}.0.1"


@pytest.mark.parametrize("is_delivered", [False, True])
def test_a_message_for_an_active_run_is_not_that_of_a_waiting_one(
    alice: User, stored: StoredRuns, is_delivered: bool
) -> None:
    """It was sent to steer the active run, also once its worker has it."""
    send(alice, LATER, tools=[]).close()
    [active] = all_runs(stored)
    message = {"content": SAID["content"], "metadata": {MESSAGE_ID: SAID["id"]}}
    thread_id = stored.row(active)["thread_id"]
    body = {"message": message, "on_busy": "steer"}
    assert 201 == alice.post(f"/v1/threads/{thread_id}/runs", body).status_code
    if is_delivered:
        deliver(stored, active)
    send(alice, {**LATER, "id": "m10"}, tools=[]).close()
    waiting = all_runs(stored)[-1]

    shown = first_cursor(send(alice, SAID, tools=[]))

    assert f"{all_runs(stored)[-1]}.0.1" == shown != f"{waiting}.0.1"
