"""The state that vendors require back with a turn that calls tools: reasoning, its signatures."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.config import Settings
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.event_log import data_of
from arkloop.shared.runs.states import RunState
from arkloop.shared.threads import threads
from arkloop.worker.attempt import execution
from arkloop.worker.contract.messages import (
    TurnEnd,
)
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.providers.fake_vendor import (
    Answer,
    ask,
    delta,
    openai_stream,
    raw,
    status,
    vendor,
)
from tests.worker.providers.stateful_turns import (
    CALLS,
    DONE,
    ENDED,
    blocks,
    chat,
    given_back,
    route_to,
    said,
    thinking,
    tool,
    used,
)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("pieces", [["let me ", "see"], ["", "see"], [""]])
def test_reasoning_goes_back_under_the_name_that_it_came_under(
    name: str, pieces: list[str]
) -> None:
    """Reasoning returns under the name it came with, even if empty: DeepSeek refuses turns with
    calls without the field.
    """
    end, message = given_back(
        "openai",
        chat(*(delta(**{name: piece}) for piece in pieces), delta(content="so: now")),
        DONE,
    )

    assert {name: "".join(pieces)} == end.state
    assert ("".join(pieces), "so: now") == (message[name], message["content"])
    assert {"role", "content", "tool_calls", name} == set(message)


def test_a_signature_goes_back_with_its_call() -> None:
    """Google's models sign the first of parallel calls, and refuse it without."""
    signed = {"google": {"thought_signature": "c2ln"}}
    calls = [tool(0, CALLS[0], extra_content=signed), tool(1, CALLS[1])]

    end, message = given_back("openai", chat(calls=calls), DONE)

    assert (None, (signed, None)) == (end.state, end.call_states)
    first, second = message["tool_calls"]
    assert signed == first["extra_content"]
    assert "extra_content" not in second


def test_blocks_of_reasoning_go_back_whole() -> None:
    """OpenRouter streams them in pieces, with their signatures."""
    of_block = {"type": "reasoning.text", "index": 0, "format": "f"}
    secret = {"type": "reasoning.encrypted", "index": 1, "data": "xyz"}
    pieces: list[dict[str, Any]] = [
        {**of_block, "text": "ha "},
        {**of_block, "text": "ha "},
        {**of_block, "signature": "sig"},
        secret,
        secret,
    ]

    _, message = given_back("openai", chat(*(delta(reasoning_details=[p]) for p in pieces)), DONE)

    whole = {**of_block, "text": "ha ha ", "signature": "sig"}
    assert [whole, secret, secret] == message["reasoning_details"]


@pytest.mark.parametrize("odd", [5, "x", {"a": 1}, [5], None])
def test_reasoning_of_another_form_is_no_reason_to_fail(odd: Any) -> None:
    """Reasoning in an unknown form is omitted."""
    pieces = [delta(reasoning_details=odd), delta(reasoning=None if odd == "x" else odd)]

    end, message = given_back("openai", chat(*pieces), DONE)

    assert end.state is None
    assert {"role", "content", "tool_calls"} == set(message)


def test_a_last_word_wants_nothing_back() -> None:
    """After a final answer no state is sent back; its reasoning is only shown."""
    with vendor(raw(openai_stream(delta(reasoning="hm"), delta(content="2", finish="stop")))) as v:
        assert TurnEnd("stop") == ask("openai", v.url)[-1]


def test_thinking_goes_back_as_it_came_and_where_it_stood() -> None:
    """Signed or redacted, before text and calls, and between them."""
    redacted = {"type": "redacted_thinking", "data": "xyz"}
    first, unseen, second, third = "hm", "", "well", "oh"

    _, message = given_back(
        "anthropic",
        blocks(
            thinking(first, "s1"),
            (redacted, []),
            said("so: "),
            thinking(unseen, "s2"),
            thinking(second, "s3"),
            said("now"),
            used(CALLS[0]),
            thinking(third, "s4"),
            used(CALLS[1]),
        ),
        ENDED,
    )

    assert [
        {"type": "thinking", "thinking": first, "signature": "s1"},
        redacted,
        {"type": "text", "text": "so: "},
        {"type": "thinking", "thinking": unseen, "signature": "s2"},
        {"type": "thinking", "thinking": second, "signature": "s3"},
        {"type": "text", "text": "now"},
        used(CALLS[0])[0],
        {"type": "thinking", "thinking": third, "signature": "s4"},
        used(CALLS[1])[0],
    ] == message["content"]


def test_a_server_without_signatures_gets_its_thinking_back_without() -> None:
    """A server without signatures gets its thinking back without one, and refuses turns with calls
    otherwise.
    """
    block = {"type": "thinking", "thinking": "h"}

    _, message = given_back(
        "anthropic",
        blocks((block, [{"type": "thinking_delta", "thinking": "m"}]), used(CALLS[0])),
        ENDED,
    )

    assert {"type": "thinking", "thinking": "hm"} == message["content"][0]


def test_a_turn_without_thinking_is_kept_without_state() -> None:
    """Where the text stood is of no interest then."""
    end, _ = given_back("anthropic", blocks(said("so: now"), *map(used, CALLS)), ENDED)

    assert (None, ()) == (end.state, end.call_states)


@contextmanager
def worker(settings: Settings, *routes: Route) -> Iterator[WorkerProcess]:
    """Start a process that does nothing unasked, with these routes alone; each is the next's
    fallback.
    """
    patient = replace(settings, sweep_seconds=3600, heartbeat_seconds=0.2)
    ranked = {route.id: replace(route, priority=i) for i, route in enumerate(routes)}
    made = WorkerProcess(patient, {**model_routes.load(patient), **ranked})
    try:
        assert made.lease.wait_until_valid(60)
        yield made
    finally:
        made.close()


def started(stored: StoredRuns, route: Route, thread_id: UUID | None = None) -> UUID:
    thread_id = thread_id or stored.thread()
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content="1+1?")
    return stored.create(thread_id, route_id=route.id, model=route.model)


def fall_silent(client: socket.socket) -> None:
    client.recv(1)


#: With what cannot be stored.
STEP = chat(delta(reasoning_content="two \U0001f600 ODD?")).replace(b"ODD", rb"\ud800\u0000")


ANTHROPIC_STEP = blocks(thinking("two?", "s1"), used(CALLS[0]))


@pytest.mark.parametrize(
    ("provider", "step", "last"), [("openai", STEP, DONE), ("anthropic", ANTHROPIC_STEP, ENDED)]
)
def test_it_outlives_the_worker_and_the_run(
    stored: StoredRuns, settings: Settings, provider: str, step: bytes, last: bytes
) -> None:
    """Lost between two steps, the run resumes elsewhere, as do later runs of its thread."""
    answers: list[Answer] = [raw(step), fall_silent, raw(last), raw(last)]
    with vendor(*answers) as fake:
        route = route_to(fake, provider)
        thread_id = stored.thread()
        run_id = started(stored, route, thread_id)
        with worker(settings, route) as process:
            attempt = threading.Thread(target=execution.execute, args=(process, run_id))
            attempt.start()
            eventually(lambda: len(fake.bodies) == 2)
            process.active_runs()[run_id].set(LeaseLost())
            attempt.join(60)
        stored.set(run_id, state=RunState.QUEUED, resume_reason="worker_lost")
        with worker(settings, route) as process:
            execution.execute(process, run_id)
            later = started(stored, route, thread_id)
            execution.execute(process, later)
        before_the_loss, after_it, in_a_later_run = (
            body["messages"][-2 if i < 2 else -4] for i, body in enumerate(fake.bodies[1:])
        )

    assert [RunState.COMPLETED] * 2 == [stored.state(run_id), stored.state(later)]
    if provider == "openai":
        assert "two \U0001f600 \ufffd\ufffd?" == before_the_loss["reasoning_content"]
    else:
        block = {"type": "thinking", "thinking": "two?", "signature": "s1"}
        assert block == before_the_loss["content"][0]
    assert before_the_loss == after_it == in_a_later_run
    step_event, last_event = (
        data_of(e.payload) for e in stored.events(run_id) if e.type == "message.completed"
    )
    assert (provider, "m") == tuple(step_event["provider_state"][n] for n in ("provider", "model"))
    assert "provider_state" not in last_event


def test_another_vendor_that_takes_over_gets_nothing_of_it(
    stored: StoredRuns, settings: Settings
) -> None:
    """It gets the turn; when the first one is back, that gets its own again."""
    refused = status("401 Unauthorized")
    with (
        vendor(raw(STEP), refused, raw(DONE)) as first,
        vendor(raw(ENDED)) as second,
    ):
        route, other = route_to(first, "openai"), route_to(second, "anthropic")
        thread_id = stored.thread()
        run_id = started(stored, route, thread_id)
        with worker(settings, route, other) as process:
            execution.execute(process, run_id)
            execution.execute(process, started(stored, route, thread_id))

    assert ["run.fallback"] == [t for t in stored.types(run_id) if t == "run.fallback"]
    [body] = second.bodies
    assert ["tool_use"] == [block["type"] for block in body["messages"][1]["content"]]
    assert "two" not in json.dumps(body["messages"])
    assert "reasoning_content" in first.bodies[2]["messages"][2]
