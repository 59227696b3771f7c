"""Responses that continue others, whose locks others hold or which others have answered."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from werkzeug.test import TestResponse

from arkloop.shared.accounts import org_settings
from arkloop.shared.events.types import MessageDelta, RunError
from arkloop.shared.ids import new_id
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.runs import commands, creation, run_limits, sweep
from arkloop.shared.runs.pending_calls import TOO_LATE
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from tests.api.protocols import late_calls
from tests.api.protocols.late_calls import LATE, OPEN
from tests.clients import User
from tests.shared_app import patient_connections
from tests.stored_runs import StoredRuns
from tests.waiting import eventually

__all__ = ["patient_connections"]  # a fixture

#: What the database has to be waited for.
ROW, ADVISORY = "transactionid", "advisory"


def wait_for(connections: Connections, locktype: str) -> None:
    """Wait until a session waits for such a lock."""
    waiting = text(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE NOT l.granted AND l.locktype = :locktype AND a.datname = current_database()"
    )

    def is_waiting() -> bool:
        with connections.reading() as sql:
            return bool(sql.scalar(waiting, {"locktype": locktype}))

    eventually(is_waiting)


@pytest.mark.parametrize("ends_meanwhile", [False, True])
def test_a_reply_to_an_ended_run_holds_no_lock_of_it(
    stored: StoredRuns, alice: User, ends_meanwhile: bool
) -> None:
    """While it waits for the limits of the org: a retry has those, and waits for the run."""
    connections = stored.connections
    with connections.transaction() as tx:
        org_settings.change(tx, alice.org_id, {"org_concurrent_runs": 9})
    limited = replace(stored.actor, limits=OrgLimits(org_concurrent_runs=9))
    thread_id = UUID(alice.thread())
    alice.say(str(thread_id))
    claim = stored.held(stored.create(thread_id))
    assert stored.park(claim, new_id())
    body = {
        "model": "scripted",
        "previous_response_id": f"resp_{claim.run_id.hex}",
        "input": "Never mind.",
        "background": True,
    }

    with ExitStack() as held, ThreadPoolExecutor(1) as threads:
        ending = held.enter_context(ExitStack())
        commands.cancel(ending.enter_context(connections.transaction()), stored.actor, claim.run_id)
        if not ends_meanwhile:
            ending.close()
        tx = held.enter_context(connections.transaction())
        run_limits.check(tx, limited)
        reply = threads.submit(alice.post, "/v1/responses", body)
        if ends_meanwhile:
            wait_for(connections, ROW)
            ending.close()
        wait_for(connections, ADVISORY)
        creation.retry(tx, limited, thread_id, stored.catalog(), trace_id="1" * 32)
        held.close()
        assert 409 == reply.result().status_code, reply.result().text


#: Of every request.
MODEL = {"model": "scripted", "background": True}


def continuing(response: str, content: Any) -> dict[str, Any]:
    """Return a request that continues a response by a message, or by items."""
    return {**MODEL, "previous_response_id": response, "input": content}


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_message_after_an_answer_of_somebody_else_is_the_next_run(
    stored: StoredRuns, alice: User, has_ended: bool
) -> None:
    """The client has no other id than that of the response which ended with the question."""
    run_id = stored.create(UUID(alice.thread()))
    claim = stored.held(run_id)
    stored.park(claim, request_id := new_id())
    stored.answer(run_id, "Rome", request_id)
    if has_ended:
        again = stored.held(run_id)
        stored.finish(again)
    asked = f"resp_{run_id.hex}"

    same = alice.post("/v1/responses", continuing(asked, "Rome")).json or {}
    made = alice.post("/v1/responses", continuing(asked, "And Paris?"))

    assert 200 == made.status_code, made.text
    newest = UUID((made.json or {})["id"].removeprefix("resp_"))
    assert (f"{asked}_1", {run_id, newest}) == (same["id"], runs_of(alice))


def test_a_run_that_continues_keeps_its_agent(stored: StoredRuns, alice: User) -> None:
    """A handoff to another persona, or to none, is refused; each name of the run's own counts."""
    assert 201 == alice.post("/v1/personas", {"key": "other", "tools": []}).status_code
    run_id = stored.create(UUID(alice.thread()))
    [run] = alice.get("/v1/runs").json or []
    claim = stored.held(run_id)
    stored.park(claim, new_id())
    answer = continuing(f"resp_{run_id.hex}", "Rome")

    for model in ("other", "other@1", "nothing-of-that-name"):
        refused = alice.post("/v1/responses", {**answer, "model": model})
        assert (400, "model") == (refused.status_code, (refused.json or {})["error"]["param"])
        assert "waiting" == stored.state(run_id)
    persona_id = run["persona_id"]
    key = persona_id.partition("@")[0]
    for model in (persona_id, key, f"{key}@99", "scripted", run["model"]):
        given = alice.post("/v1/responses", {**answer, "model": model})
        assert (200, f"resp_{run_id.hex}_1") == (given.status_code, (given.json or {}).get("id"))

    assert {run_id} == runs_of(alice)


def park_again(stored: StoredRuns, run_id: UUID, answer: str) -> None:
    """Let a run ask, get this answer, and ask something else."""
    claim = stored.held(run_id)
    stored.park(claim, request_id := new_id())
    stored.answer(run_id, answer, request_id)
    again = stored.held(run_id)
    stored.park(again, new_id())


def test_a_message_that_has_not_seen_the_open_question_is_refused(
    stored: StoredRuns, alice: User
) -> None:
    """It neither answers that one nor waits behind it; the error names the response to continue."""
    run_id = stored.create(UUID(alice.thread()))
    park_again(stored, run_id, "Rome")
    asked = f"resp_{run_id.hex}"

    refused = alice.post("/v1/responses", continuing(asked, "And Paris?"))
    assert 409 == refused.status_code, refused.text
    error = (refused.json or {})["error"]
    seen = alice.post("/v1/responses", continuing(f"{asked}_1", "And Paris?")).json or {}

    assert "responses.not_newest" == error["code"]
    assert f"{asked}_1," in error["message"]
    assert (f"{asked}_2", {run_id}) == (seen.get("id"), runs_of(alice))


def test_items_sent_again_answer_only_the_question_that_they_show(
    stored: StoredRuns, alice: User
) -> None:
    """The same answer again counts once, and another one is refused, until the items have more."""
    run_id = stored.create(UUID(alice.thread()))
    park_again(stored, run_id, "yes")
    asked = f"resp_{run_id.hex}"
    events = stored.events(run_id)
    seqs = [event.seq for event in events if event.type == "run.waiting_for_input"]
    first, second = (
        {"role": "assistant", "id": f"msg_{run_id.hex}_{seq}", "content": "?"} for seq in seqs
    )

    def send(content: str, *shown: Any) -> TestResponse:
        items = [*shown, {"role": "user", "content": content}]
        return alice.post("/v1/responses", {**MODEL, "input": items})

    again, late = send("yes", first), send("no", first)
    assert "waiting" == stored.state(run_id)
    answer = send("yes", first, {"role": "user", "content": "yes"}, second)

    assert (200, f"{asked}_1") == (again.status_code, (again.json or {})["id"]), again.text
    assert (409, "responses.not_newest") == (late.status_code, (late.json or {})["error"]["code"])
    assert (200, f"{asked}_2") == (answer.status_code, (answer.json or {})["id"]), answer.text


FAILED = RunError("worker.crashed", "The worker was lost.", retryable=True)


@pytest.mark.parametrize(
    ("ending", "output", "counts_once"),
    [
        ({"error": FAILED, "state": RunState.FAILED}, "", False),
        ({"state": RunState.CANCELLED}, "Ro", False),
        ({}, "", False),
        ({}, "Rome it is.", True),
        (None, "", True),
    ],
)
def test_the_same_answer_after_a_failed_response_is_the_next_run(
    stored: StoredRuns, alice: User, ending: dict[str, Any] | None, output: str, counts_once: bool
) -> None:
    """Items sent again need not show that response, only the answer before it."""
    run_id = stored.create(UUID(alice.thread()))
    claim = stored.held(run_id)
    stored.park(claim, request_id := new_id())
    stored.answer(run_id, "Rome", request_id)
    if ending is not None:
        again = stored.held(run_id)
        if output:
            stored.write(again, MessageDelta(output))
        stored.finish(again, **ending)
    asked = {"role": "assistant", "id": f"msg_{run_id.hex}_{claim.last_seq + 1}", "content": "?"}
    answer = {"role": "user", "content": "Rome"}

    def send(*items: Any) -> str:
        sent = alice.post("/v1/responses", {**MODEL, "input": list(items)})
        assert 200 == sent.status_code, sent.text
        return str((sent.json or {})["id"])

    repeated, tried_again = send(asked, answer), send(asked, answer, answer)

    first = f"resp_{run_id.hex}_1"
    assert (first, counts_once) == (repeated, first == tried_again)
    assert (1 if counts_once else 2) == len(runs_of(alice))


def test_a_turn_may_fail_more_than_once(stored: StoredRuns, alice: User) -> None:
    """A client that sends all items again has nothing of the runs that failed to continue."""
    first = stored.create(UUID(alice.thread()))
    claim = stored.held(first)
    stored.write(claim, MessageDelta("Hello."))
    stored.finish(claim)
    shown = {"role": "assistant", "id": f"msg_{first.hex}_2", "content": "Hello."}
    question = {"role": "user", "content": "Which city?"}

    for _ in range(3):
        items = [shown, *[question] * len(runs_of(alice))]
        made = alice.post("/v1/responses", {**MODEL, "input": items})
        assert 200 == made.status_code, made.text
        again = stored.held(UUID((made.json or {})["id"].removeprefix("resp_")))
        stored.finish(again, error=FAILED, state=RunState.FAILED)

    assert 4 == len(runs_of(alice))


def finished(stored: StoredRuns, run_id: UUID) -> None:
    claim = stored.held(run_id)
    stored.finish(claim)


def test_the_newest_response_is_the_last_one_also_where_a_clock_was_set_back(
    stored: StoredRuns, alice: User
) -> None:
    """It is continued, and no earlier one; each shows the one before it, and its own time."""
    thread_id = UUID(alice.thread())
    one = stored.create(thread_id, created_at=text("to_timestamp(1795003600)"))
    finished(stored, one)
    two = stored.create(thread_id, created_at=text("to_timestamp(1795000000)"))
    finished(stored, two)

    older = alice.post("/v1/responses", continuing(f"resp_{one.hex}", "And now?"))
    made = alice.post("/v1/responses", continuing(f"resp_{two.hex}", "And now?"))

    assert (409, 200) == (older.status_code, made.status_code), made.text
    three = (made.json or {})["id"]
    shown = [alice.get(f"/v1/responses/resp_{run.hex}").json or {} for run in (one, two)]
    shown.append(alice.get(f"/v1/responses/{three}").json or {})
    assert [None, f"resp_{one.hex}", f"resp_{two.hex}"] == [
        response["previous_response_id"] for response in shown
    ]
    assert [1_795_003_600, 1_795_000_000] == [response["created_at"] for response in shown[:2]]


def test_items_of_a_later_response_count_whatever_its_id(stored: StoredRuns, alice: User) -> None:
    """The web process that made the id of the response before it had a clock that was ahead."""
    before = UUID(int=new_id().int + (3_600_000 << 80))
    stored.create(UUID(alice.thread()), id=before)
    finished(stored, before)
    named = {**MODEL, "previous_response_id": f"resp_{before.hex}"}
    made = alice.post("/v1/responses", {**named, "input": "Which city?"}).json or {}
    run_id = UUID(made["id"].removeprefix("resp_"))
    claim = stored.held(run_id)
    stored.park(claim, new_id())
    asked = {"role": "assistant", "id": f"msg_{run_id.hex}_{claim.last_seq + 1}", "content": "?"}
    items = [asked, {"role": "user", "content": "Rome"}]

    sent = alice.post("/v1/responses", {**named, "input": items})

    assert (200, f"{made['id']}_1") == (sent.status_code, (sent.json or {}).get("id")), sent.text


@pytest.mark.parametrize(
    ("sent", "status"), [((LATE, OPEN), 200), ((OPEN,), 200), ((LATE,), 400), ((), 400)]
)
@pytest.mark.parametrize("is_swept", [True, False])
def test_a_late_output_is_neither_required_nor_refused(
    stored: StoredRuns, alice: User, sent: tuple[str, ...], status: int, is_swept: bool
) -> None:
    """The outputs of the other calls count, and are all required."""
    tool = {"type": "function", "name": "locate", "parameters": {"type": "object"}}
    made = alice.post("/v1/responses", {**MODEL, "tools": [tool], "input": "Where am I?"}).json
    response = str((made or {})["id"])
    run_id = UUID(response.removeprefix("resp_"))
    late_calls.wait_for(stored, run_id)
    if is_swept:
        sweep.sweep(stored.connections)
    outputs = [{"type": "function_call_output", "call_id": id_, "output": "Rome"} for id_ in sent]

    given = alice.post("/v1/responses", continuing(response, outputs or "Never mind."))

    assert status == given.status_code, given.text
    if status == 200:
        assert f"{response}_1" == (given.json or {})["id"]
        assert {LATE: TOO_LATE, OPEN: "Rome"} == late_calls.outputs(stored, run_id)


def runs_of(user: User) -> set[UUID]:
    return {UUID(run["run_id"]) for run in user.get("/v1/runs").json or []}
