"""The parts of runs that have asked their clients many times."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from arkloop.api.protocols.agui_facts import AguiFacts
from arkloop.api.protocols.agui_projection import AguiProjection
from arkloop.api.protocols.responses_object import RunFacts
from arkloop.api.protocols.responses_projection import ResponseProjection
from arkloop.api.protocols.run_parts import find_part
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.ids import new_id
from tests.api.protocols import test_responses_input as by_responses
from tests.api.protocols.test_agui_runs import SAID, ask, asking, result, send, turn
from tests.clients import User
from tests.query_plans import noted
from tests.stored_runs import StoredRuns

WAITS = 8


def pages(stored: StoredRuns, run_id: UUID, request: Callable[[], Any]) -> int:
    """Return how often a request reads a page of the run's events."""
    with noted(stored.connections) as statements:
        request()
    seen = [values for sql, values in statements if "run_events.seq >" in sql]
    return len([values for values in seen if values["run_id_1"] == run_id])


@pytest.mark.parametrize("kind", ["connect", "join", "results", "resume"])
def test_a_page_is_served_with_few_looks_at_a_run_that_has_waited_often(
    stored: StoredRuns, alice: User, kind: str
) -> None:
    """Each look at all events for each wait would keep the connections of a process from others."""
    run_id = asking(alice, stored, "c0")
    for number in range(1, WAITS):
        before = f"c{number - 1}"
        send(alice, SAID, turn(run_id, before), result(run_id, before)).close()
        ask(stored, run_id, f"c{number}")
    last = f"c{WAITS - 1}"
    sent = [SAID, turn(run_id, last), result(run_id, last)]
    more: dict[str, Any] = {}
    if kind == "resume":
        send(alice, *sent).close()
        stored.park(stored.held(run_id), question := new_id())
        more = {"resume": [{"interruptId": str(question), "status": "resolved", "payload": "Oslo"}]}
        sent = [SAID]
    shown = {"threadId": "chat-1", "runId": str(new_id()), "messages": []}
    requests: dict[str, Callable[[], Any]] = {
        "connect": lambda: alice.post("/v1/agui/connect", json=shown).data,
        "join": lambda: send(alice, SAID).data,
        "results": lambda: send(alice, *sent).close(),
        "resume": lambda: send(alice, *sent, **more).close(),
    }

    assert pages(stored, run_id, requests[kind]) < WAITS / 2
    if kind in ("results", "resume"):
        assert "queued" == stored.state(run_id)


def test_a_response_is_continued_with_few_looks_at_a_run_that_has_waited_often(
    stored: StoredRuns, alice: User
) -> None:
    """The client sends all items each time; what it sends again has the same response."""
    run_id, items = by_responses.calling(stored, alice, "c0")
    made: list[Any] = []

    def answer(*sent: dict[str, Any]) -> None:
        body = {**by_responses.MODEL, "input": list(sent)}
        made.append(alice.post("/v1/responses", body).json)

    looks = 0
    for number in range(1, WAITS + 1):
        items.append(by_responses.output(items[-1]["call_id"]))
        looks = pages(stored, run_id, partial(answer, *items))
        if number < WAITS:
            by_responses.ask(stored, run_id, f"c{number}")
            items += by_responses.calls_of(alice, made[-1]["id"])
    answer(*items[:4])
    answer(*items[:3], by_responses.output(f"call_{run_id.hex}_{2**63}"))

    numbers = [*range(1, WAITS + 1), 2]
    assert [f"resp_{run_id.hex}_{number}" for number in numbers] == [one["id"] for one in made[:-1]]
    assert "No function call found" in made[-1]["error"]["message"]
    assert looks < WAITS / 2


def test_parts_are_those_of_the_projections() -> None:
    """Clients hold ids that have the numbers of parts."""
    calls = [
        {"tool_call_id": f"c{n}", "name": name, "arguments": {}} for n, name in enumerate("ht" * 3)
    ]
    asked: list[dict[str, Any]] = [{"kind": "tool_results", "calls": [call]} for call in calls]
    asked[4:4] = [{"kind": "question"}, {"kind": "tool_confirmation", "tool_call_id": "c1"}]
    happened = [("tool.call", call) for call in calls]
    more = {"prompt": "?", "expires_at": "2026-12-01T00:00:00Z"}
    happened += [
        ("run.waiting_for_input", {"request_id": str(n), **more, **data})
        for n, data in enumerate(asked)
    ]
    events: list[dict[str, Any]] = [
        {"seq": seq, "type": kind, "data": data, "created_at": "2026-12-01T00:00:00Z"}
        for seq, (kind, data) in enumerate([("run.started", {}), *happened], 1)
    ]
    waits = [
        StoredEvent(event["seq"], event["type"], json.dumps(event))
        for event in events
        if event["type"] == "run.waiting_for_input"
    ]
    run_id, tools = new_id(), frozenset("t")
    agui = AguiFacts(run_id=run_id, thread_id="", client_run_id="", client_tools=tools)
    responses = RunFacts(run_id=run_id, created_at=0, model="", client_tools=tools)
    first = 0
    for request_id in ("1", "3", "4", "5", "7"):
        for asks_client in (agui.asks_client, ResponseProjection(responses).asks_client):
            found = find_part(
                *(waits, events[-1]["seq"], asks_client),
                lambda _, data, wanted=request_id: data["request_id"] == wanted,
            )
            shown = AguiProjection(agui, found.first), ResponseProjection(responses, found.first)
            for projection in shown:
                projection.opening()
                for event in events:
                    list(projection.frames(event))
                assert projection.asked is not None
                assert found == (first, projection.waits, projection.asked["data"])
            assert request_id == found.asked["request_id"]
        first = found.waits

    open_part, replied = (find_part(waits, waits[-1].seq + n, agui.asks_client) for n in (0, 1))
    assert ((6, 8), (8, 8, {})) == (open_part[:2], replied)
