"""Prompts through the whole service: byte for byte what the vendors received."""

import base64
import json
import threading
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text as sql

from arkloop.shared.events.prompts import MAX_RUN_BYTES
from tests.acceptance.test_files import upload
from tests.acceptance.test_long_threads import serving, set_up
from tests.caller import Caller, error_of, script, types
from tests.contents import png
from tests.system import System
from tests.waiting import eventually
from tests.worker.providers.anthropic_answers import block, finish, piece, start, text
from tests.worker.providers.fake_vendor import (
    Answer,
    anthropic_stream,
    delta,
    openai_stream,
    raw,
    status,
    vendor,
)

PROBLEM = {"expression": "6*7"}
NAMED = {"name": "calculator", "arguments": json.dumps(PROBLEM)}
SECRET = "sk-secret-of-the-org"
TABLE = 'name,iban\n"Jäne Roe",DE00\n'


def _responses(*items: dict[str, Any]) -> bytes:
    events: list[dict[str, Any]] = [
        *({"type": "response.output_item.added", "output_index": 0, "item": i} for i in items),
        *({"type": "response.output_item.done", "output_index": 0, "item": i} for i in items),
        {"type": "response.completed", "response": {"status": "completed"}},
    ]
    return openai_stream(*events, done=False)


_CALL = {"index": 0, "id": "c1", "type": "function", "function": NAMED}
_USE = block(0, type="tool_use", id="t1", name="calculator", input={})
_SAID = {"type": "output_text", "text": "It is 42.", "annotations": []}
#: Of each API: the kind of its provider, fields of the model, a call of a tool, and a text.
APIS: dict[str, tuple[str, dict[str, Any], bytes, bytes]] = {
    "chat": (
        "openai",
        {"api": "chat"},
        openai_stream(delta(tool_calls=[_CALL]), delta("tool_calls")),
        openai_stream(delta(content="It is 42."), delta("stop")),
    ),
    "responses": (
        "openai",
        {"api": "responses"},
        _responses({"type": "function_call", "id": "f1", "call_id": "c1", **NAMED}),
        _responses({"type": "message", "id": "m1", "role": "assistant", "content": [_SAID]}),
    ),
    "messages": (
        "anthropic",
        {},
        anthropic_stream(
            start(input_tokens=9),
            _USE,
            piece(0, "input_json_delta", partial_json=json.dumps(PROBLEM)),
            finish("tool_use", output_tokens=2),
        ),
        anthropic_stream(
            start(input_tokens=9), *text(0, "It is 42."), finish("end_turn", output_tokens=2)
        ),
    ),
}


def provider(owner: Caller, kind: str, url: str, **model: Any) -> str:
    """Make a provider with one model; returns the id of its route."""
    models = [{"model": "m", "is_default": True, **model}]
    fields = {"name": f"of {url}", "kind": kind, "base_url": url, "api_key": SECRET}
    made = owner.made("/v1/llm-providers", {**fields, "models": models})
    return str(made["models"][0]["id"])


def persona(owner: Caller, **fields: Any) -> str:
    definition = {"key": "own", "system_prompt": "Be brïef.", "tools": ["calculator"], **fields}
    return str(owner.made("/v1/personas", definition)["id"])


def prompts_of(caller: Caller, run_id: str) -> list[dict[str, Any]]:
    """Return the prompts of a run with their bodies."""
    path = f"/v1/runs/{run_id}/prompts"
    listed = caller.get(path)
    assert list(range(1, len(listed) + 1)) == [one["number"] for one in listed]
    found = [caller.get(path, number=one["number"]) for one in listed]
    assert listed == [{name: one[name] for name in one if name != "body"} for [one] in found]
    return [one for [one] in found]


def bodies(caller: Caller, run_id: str) -> list[bytes]:
    return [prompt["body"].encode() for prompt in prompts_of(caller, run_id)]


@pytest.mark.parametrize("api", APIS)
def test_each_try_and_step_is_what_its_api_received(system: System, api: str) -> None:
    """A refused try, a turn with a call, and the last one; files are shown by their ids."""
    kind, model, called, said = APIS[api]
    owner = system.caller()
    image = png() + bytes(range(256))
    file_id = upload(owner, image)
    text_id = upload(owner, TABLE.encode(), "people.csv")
    with vendor(status("500 Internal Server Error"), raw(called), raw(said)) as fake:
        provider(owner, kind, fake.url, **model)
        thread = owner.thread()
        content: list[dict[str, Any]] = [
            {"type": "text", "text": "6·7?\n<b>"},
            {"type": "image", "file_id": file_id},
            {"type": "file", "file_id": text_id},
        ]
        owner.made(f"/v1/threads/{thread}/messages", {"content": content})
        run_id = owner.start(thread, persona_id=persona(owner))
        run = owner.ended(run_id)
        sent = list(fake.sent)

    assert ("completed", "It is 42.") == (run["status"], run["output"])
    prompts = prompts_of(owner, run_id)
    shown = f"[content of file {file_id}]".encode()
    whole = base64.b64encode(image)
    table = json.dumps(f'<file name="people.csv">\n{TABLE}\n</file>', ensure_ascii=False)
    replaced = {whole: shown, table[1:-1].encode(): f"[content of file {text_id}]".encode()}
    assert 3 == len(sent) and all(part in body for body in sent for part in replaced)
    expected = list(sent)
    for part, its_id in replaced.items():
        expected = [body.replace(part, its_id) for body in expected]
    assert expected == bodies(owner, run_id)
    assert [len(body) for body in sent] == [prompt["bytes"] for prompt in prompts]
    facts = ("step", "try_number", "attempt", "purpose", "provider", "model", "is_stored")
    turn = (1, "turn", kind, "m", True)
    assert [(1, 1, *turn), (1, 2, *turn), (2, 1, *turn)] == [
        tuple(prompt[name] for name in facts) for prompt in prompts
    ]
    events = owner.events(run_id)
    assert not [event for event in events if "Be brïef." in json.dumps(event, ensure_ascii=False)]
    assert SECRET not in json.dumps(prompts)
    assert sorted(prompt["seq"] for prompt in prompts) == [prompt["seq"] for prompt in prompts]
    assert {prompt["seq"] for prompt in prompts} <= {event["seq"] for event in events}


def test_each_route_of_a_fallback_has_its_own(system: System) -> None:
    """The route that refused the call is shown with what it received, the next one, too."""
    owner = system.caller()
    refusal = status("401 Unauthorized")
    with vendor(refusal) as first, vendor(raw(APIS["messages"][3])) as second:
        other = provider(owner, "anthropic", second.url, is_default=False)
        route = provider(owner, "openai", first.url)
        run_id = owner.run("Hi", persona_id=persona(owner, fallback_route_ids=[other]))
        owner.ended(run_id)
        sent = [*first.sent, *second.sent]

    assert [(route, "openai"), (other, "anthropic")] == [
        (prompt["route_id"], prompt["provider"]) for prompt in prompts_of(owner, run_id)
    ]
    assert sent == bodies(owner, run_id)


def test_a_message_while_busy_is_in_the_next_prompt(system: System) -> None:
    """A steered message, as the vendor received it."""
    owner = system.caller()
    may_answer = threading.Event()
    call = raw(APIS["chat"][2])

    def late(client: Any) -> None:
        may_answer.wait(60)
        call(client)

    answers: list[Answer] = [late, raw(APIS["chat"][3])]
    with vendor(*answers) as fake:
        provider(owner, "openai", fake.url)
        thread = owner.thread("6*7?")
        run_id = owner.start(thread, persona_id=persona(owner))
        eventually(lambda: len(fake.sent) == 1)
        steering = {"message": "And in French?", "on_busy": "steer"}
        owner.made(f"/v1/threads/{thread}/runs", steering)
        may_answer.set()
        owner.ended(run_id)
        sent = list(fake.sent)

    assert b"And in French?" in sent[1]
    assert sent == bodies(owner, run_id)


def test_summaries_and_shortened_threads_are_shown(system: System) -> None:
    """Every request of a thread that outgrows its context is a prompt of one of its runs."""
    with serving() as busy:
        owner = set_up(system, busy, compaction="summary")
        thread = owner.thread("Hello")
        found = []
        compacted = 0
        for number in range(12):
            owner.say(thread, f"{number}: {'the quick brown fox jumps over it; ' * 24}")
            run_id = owner.start(thread, persona_id="chatty")
            compacted += types(owner.events(run_id)).count("context.compacted")
            found += prompts_of(owner, run_id)

    assert compacted > 0
    assert busy.sent == [prompt["body"].encode() for prompt in found]
    assert {"turn", "summary"} == {prompt["purpose"] for prompt in found}
    assert len(busy.summaries) == [prompt["purpose"] for prompt in found].count("summary")


def test_sub_runs_have_prompts_of_their_own(system: System) -> None:
    """The parent's prompts contain the task's answer, the sub-run's contain the task."""
    owner = system.caller()
    task = {"name": "delegate", "arguments": json.dumps({"persona": "plain", "task": "6*7?"})}
    called = openai_stream(delta(tool_calls=[{**_CALL, "function": task}]), delta("tool_calls"))
    said = APIS["chat"][3]
    with vendor(raw(called), raw(said), raw(said)) as fake:
        provider(owner, "openai", fake.url)
        boss = persona(owner, key="boss", tools=[], delegates=["plain"])
        owner.made("/v1/personas", {"key": "plain", "system_prompt": "Do it."})
        run_id = owner.run("Delegate.", persona_id=boss)
        owner.ended(run_id)
        [child] = owner.get("/v1/runs", parent_run_id=run_id)
        sent = list(fake.sent)

    assert [sent[1]] == bodies(owner, child["run_id"])
    assert [sent[0], sent[2]] == bodies(owner, run_id)


def test_who_may_see_them(user: Caller, system: System) -> None:
    """Everybody who sees the run does, except end users: prompts contain the persona's text."""
    run_id = user.run({"say": "Hi."})
    user.ended(run_id)
    path = f"/v1/runs/{run_id}/prompts"
    scopes = ["data.runs.read", "data.threads.read"]
    token = user.made("/v1/client-tokens", {"end_user_id": "ann", "scopes": scopes})["token"]
    _, key = user.api_key(scopes=scopes)

    assert 1 == len(user.at(token=key).get(path))
    for scope in scopes:  # neither is enough: a prompt has the conversation
        _, key = user.api_key(scopes=[scope])
        assert (403, "auth.forbidden") == error_of(user.at(token=key).http.get(path))
    assert (404, "runs.not_found") == error_of(system.caller().http.get(path))
    assert 403 == user.at(token=token).http.get(path).status_code
    assert [] == user.get(path, number=2)
    assert (422, "validation.error") == error_of(user.http.get(path, params={"number": "x"}))


def test_all_attempts_of_a_run_share_what_it_may_store(user: Caller, system: System) -> None:
    """A run that waits for a person begins with a whole body each time that it continues."""
    asks = {"tool": "ask_user", "args": {"question": "Yes?"}}
    run_id = user.run(script(asks, asks, {"say": "Thanks."}), persona_id="assistant")
    eventually(lambda: user.answer(run_id, "yes").is_success)
    path = f"/v1/runs/{run_id}/prompts"
    eventually(lambda: len(user.get(path)) == 2)
    eventually(lambda: user.get_run(run_id)["status"] == "waiting_for_input")
    [_, second] = user.get(path)
    large = {**second, "length": MAX_RUN_BYTES}
    del large["number"], large["seq"], large["is_stored"]
    record = json.dumps(large).encode() + b"\n" + bytes(MAX_RUN_BYTES)
    with system.connections.transaction() as tx:
        more = sql(
            "UPDATE run_events SET prompts = prompts || :more WHERE run_id = :id AND seq = :seq"
        )
        tx.sql.execute(more, {"more": record, "id": UUID(run_id), "seq": second["seq"]})
    user.answer(run_id, "yes").raise_for_status()
    user.ended(run_id)

    assert [(1, True), (2, True), (2, False), (3, False)] == [
        (one["step"], one["is_stored"]) for one in prompts_of(user, run_id)
    ]
