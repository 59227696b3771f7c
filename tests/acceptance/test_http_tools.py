"""Tools of an org behind HTTP, in the whole service: who is served, crashes and cancels."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.caller import Caller, client, data_of, error_of, script, types
from tests.system import System
from tests.tool_receiver import Received, Reply, ToolReceiver
from tests.waiting import eventually

pytestmark = pytest.mark.processes

CALL = {"tool": "refund", "args": {"order": 7}}
PARAMETERS = {"type": "object", "properties": {"order": {"type": "integer"}}}
LOCATE = {"name": "locate", "description": "Where?", "client": True}


@pytest.fixture
def receiver() -> Iterator[ToolReceiver]:
    with ToolReceiver(lambda _: Reply({"output": "refunded"})) as made:
        yield made


def clerk(owner: Caller, receiver: ToolReceiver, **fields: Any) -> str:
    """Publish a persona with the tool and one of clients; returns the tool's signing secret."""
    given = {"name": "refund", "description": "Refund.", "url": receiver.url}
    tool = owner.made("/v1/tools", {**given, "parameters": PARAMETERS, **fields})
    of_clients = [{**LOCATE, "parameters": {"type": "object"}}]
    owner.made("/v1/personas", {"key": "clerk", "tools": ["refund"], "client_tools": of_clients})
    return str(tool["signing_secret"])


def test_a_tool_learns_on_whose_behalf_it_is_called(
    owner: Caller, receiver: ToolReceiver, system: System
) -> None:
    """A call names the run, its thread and org, the end user and the metadata, within the run's
    trace; no secret is in the events or the worker's log.
    """
    secret = clerk(owner, receiver, headers={"X-Key": "canary-1"})
    body = {
        "message": '{"script": [{"tool": "refund", "args": {"order": 7}}, {"say": "done"}]}',
        "persona_id": "clerk",
        "end_user_id": "shopper-1",
        "metadata": {"plan": "pro"},
    }
    created = owner.made("/v1/runs", body)

    events = owner.events(created["run_id"])

    [result] = data_of(events, "tool.result")
    assert ("refunded", False) == (result["output"], result["is_error"])
    [request] = receiver.received
    assert request.is_signed_by(secret)
    data = request.data
    expected = {
        "name": "refund",
        "arguments": {"order": 7},
        "run_id": created["run_id"],
        "thread_id": created["thread_id"],
        "org_id": owner.org_id,
        "end_user_id": "shopper-1",
        "metadata": {"plan": "pro"},
        "tool_call_id": result["tool_call_id"],
        "idempotency_key": request.headers["webhook-id"],
        "traceparent": request.headers["traceparent"],
    }
    assert expected == data
    assert data["traceparent"].startswith(f"00-{created['trace_id']}-")
    assert not [s for s in ("canary-1", secret) if s in f"{events}{system.worker.log.read_text()}"]


@pytest.mark.parametrize(
    ("idempotent", "calls", "output", "refusal"),
    [
        (True, 2, "refunded", "runs.not_active"),
        (False, 1, "The outcome of this call is unknown", "tool_results.conflict"),
    ],
)
def test_a_worker_that_is_killed_during_a_call(
    owner: Caller,
    receiver: ToolReceiver,
    system: System,
    idempotent: bool,
    calls: int,
    output: str,
    refusal: str,
) -> None:
    """An idempotent tool is called again under the same key; of another one the model reads that
    the outcome is unknown. A result that the first call sends after that is refused.
    """
    clerk(owner, receiver, idempotent=idempotent)
    receiver.answer = _hang
    run_id = owner.run(CALL, {"say": "ok"}, persona_id="clerk")
    eventually(lambda: len(receiver.received) == 1)
    receiver.answer = lambda _: Reply({"output": "refunded"})

    os.kill(system.worker.pid, signal.SIGKILL)

    events = owner.events(run_id)
    [result] = data_of(events, "tool.result")
    assert result["output"].startswith(output)
    assert "run.completed" == types(events)[-1]
    assert calls == len(receiver.received)
    assert 1 == len({request.headers["webhook-id"] for request in receiver.received})
    sent = [{"tool_call_id": result["tool_call_id"], "output": "refunded later"}]
    refused = owner.http.post(f"/v1/runs/{run_id}/tool-results", json=sent)
    assert (409, refusal) == error_of(refused)


def test_a_tool_sends_its_result_later(owner: Caller, receiver: ToolReceiver) -> None:
    """A call that is accepted with 202 parks the run, which resumes with the result that the tool
    sends.
    """
    clerk(owner, receiver)
    receiver.answer = lambda _: Reply(status=202)
    run_id = owner.run(CALL, {"say": "ok"}, persona_id="clerk")
    pending = owner.until(run_id, "status", "waiting_for_input")["pending_input"]
    [request] = receiver.received
    call_id = request.data["tool_call_id"]
    assert "tool_results" == pending["kind"]
    assert [call_id] == [call["tool_call_id"] for call in pending["calls"]]

    sent = [{"tool_call_id": call_id, "output": "refunded later"}]
    answers = [owner.http.post(f"/v1/runs/{run_id}/tool-results", json=sent) for _ in range(2)]

    assert [200, 200] == [answer.status_code for answer in answers]
    events = owner.events(run_id)
    [result] = data_of(events, "tool.result")
    assert ("refunded later", False) == (result["output"], result["is_error"])
    assert "run.completed" == types(events)[-1]
    assert 1 == len(receiver.received)


def test_a_result_that_is_sent_before_the_tool_has_responded_counts(
    owner: Caller, receiver: ToolReceiver
) -> None:
    """A tool may work faster than it responds: its result is kept until the run needs it."""
    clerk(owner, receiver)

    def accept(request: Received) -> Reply:
        sent = [{"tool_call_id": request.data["tool_call_id"], "output": "fast"}]
        path = f"/v1/runs/{request.data['run_id']}/tool-results"
        assert 200 == owner.http.post(path, json=sent).status_code
        return Reply(status=202)

    receiver.answer = accept
    run_id = owner.run(CALL, {"say": "ok"}, persona_id="clerk")

    [result] = data_of(owner.events(run_id), "tool.result")

    assert ("fast", False) == (result["output"], result["is_error"])


@pytest.mark.parametrize("is_private", [False, True])
def test_the_server_of_a_tool_sends_results_in_runs_of_others(
    owner: Caller, receiver: ToolReceiver, system: System, is_private: bool
) -> None:
    """A key with `tools.work` sends them, also in private threads, and those of no client tool.

    To all other keys of others the run is what it was: not theirs, or not there.
    """
    clerk(owner, receiver)
    receiver.answer = lambda _: Reply(status=202)
    bob, eve = system.colleague(owner), system.colleague(owner)
    said = script({"tools": [{"tool": "locate", "args": {}}, CALL]}, {"say": "ok"})
    run_id = bob.start(bob.thread(said, is_private=is_private), persona_id="clerk")
    bob.until(run_id, "status", "waiting_for_input")
    of_server = ["data.runs.write", "tools.work"]

    def send(sender: Caller, *call_ids: str) -> httpx.Response:
        body = [{"tool_call_id": call_id, "output": "done"} for call_id in call_ids]
        return sender.http.post(f"/v1/runs/{run_id}/tool-results", json=body)

    refusal = (404, "runs.not_found") if is_private else (403, "auth.forbidden")
    for member in (eve, with_key(eve, "data.runs.write"), with_key(owner, "data.runs.write")):
        assert refusal == error_of(send(member, "call_1_2"))
    server = with_key(owner, *of_server)
    for call_ids in (["call_1_1"], ["call_1_2", "call_1_1"], ["call_1_3"]):
        assert refusal == error_of(send(server, *call_ids))
    for action, body in ((":cancel", None), ("/input", {"content": "yes"})):
        assert refusal == error_of(server.http.post(f"/v1/runs/{run_id}{action}", json=body))
    stranger = with_key(system.caller(), *of_server)
    assert (404, "runs.not_found") == error_of(send(stranger, "call_1_2"))
    assert 403 == eve.http.post("/v1/api-keys", json={"name": "k", "scopes": of_server}).status_code

    assert [200, 200] == [send(server, "call_1_2").status_code for _ in range(2)]
    assert 200 == send(bob, "call_1_1").status_code
    results = data_of(bob.events(run_id), "tool.result")
    assert [("done", False)] * 2 == [(result["output"], result["is_error"]) for result in results]


def with_key(user: Caller, *scopes: str) -> Caller:
    """Return the same user by a new API key with these scopes."""
    return user.at(token=user.api_key(scopes=scopes)[1])


def test_a_ticket_sends_no_result_of_a_tool_that_takes_longer(
    owner: Caller, receiver: ToolReceiver
) -> None:
    """The page of a ticket is in its user's hands: it sends the results of client tools alone."""
    clerk(owner, receiver)
    receiver.answer = lambda _: Reply(status=202)
    calls = [{"tool": "locate", "args": {}}, CALL]
    run_id = owner.run({"tools": calls}, {"say": "ok"}, persona_id="clerk")
    owner.until(run_id, "status", "waiting_for_input")
    page = ticket_sender(owner, run_id)

    assert (422, "validation.error") == error_of(page("call_1_2", "refunded by the page"))
    assert 200 == page("call_1_1", "Rome").status_code
    sent = [{"tool_call_id": "call_1_2", "output": "refunded later"}]
    assert 200 == owner.http.post(f"/v1/runs/{run_id}/tool-results", json=sent).status_code

    results = data_of(owner.events(run_id), "tool.result")
    assert ["Rome", "refunded later"] == [result["output"] for result in results]


def test_a_ticket_sends_no_result_of_a_tool_that_is_at_work(
    owner: Caller, receiver: ToolReceiver
) -> None:
    """The response of the tool itself counts, and not what came by the ticket before."""
    clerk(owner, receiver)
    refused = []

    def answer(request: Received) -> Reply:
        page = ticket_sender(owner, request.data["run_id"])
        refused.append(error_of(page("call_1_1", "refunded by the page")))
        return Reply({"output": "over the limit"})

    receiver.answer = answer
    calls = [CALL, {"tool": "locate", "args": {}}]
    run_id = owner.run({"tools": calls}, {"say": "ok"}, persona_id="clerk")
    owner.until(run_id, "status", "waiting_for_input")
    assert 200 == ticket_sender(owner, run_id)("call_1_2", "Rome").status_code

    results = data_of(owner.events(run_id), "tool.result")
    assert [(409, "runs.not_waiting")] == refused
    assert ["over the limit", "Rome"] == [result["output"] for result in results]


def ticket_sender(owner: Caller, run_id: str) -> Callable[[str, str], httpx.Response]:
    """Return a function that sends the result of a call with nothing but a ticket."""
    ticket = owner.made(f"/v1/runs/{run_id}/stream-ticket", {"tool_results": True})["ticket"]
    path = f"/v1/runs/{run_id}/tool-results?ticket={ticket}"

    def send(call_id: str, output: str) -> httpx.Response:
        return client(owner.url).post(path, json=[{"tool_call_id": call_id, "output": output}])

    return send


def test_a_cancelled_run_closes_the_connection(owner: Caller, receiver: ToolReceiver) -> None:
    """The receiver of a call notices that its run was cancelled."""
    clerk(owner, receiver)
    receiver.answer = _hang
    run_id = owner.run(CALL, {"say": "ok"}, persona_id="clerk")
    eventually(lambda: len(receiver.received) == 1)

    owner.cancel(run_id)

    assert receiver.received[0].hung_up.wait(30)
    assert "cancelled" == owner.ended(run_id)["status"]


def _hang(request: Received) -> None:
    request.hung_up.wait(30)
