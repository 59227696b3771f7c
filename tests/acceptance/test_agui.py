"""`/v1/agui` by the unmodified `HttpAgent`, whose verification stage checks every event."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.agui_client import LAST_0_0, NEWEST, AguiProcess, agui_process
from tests.ai_sdk_chat import needs_front_ends
from tests.caller import Caller, script
from tests.cutting_proxy import cutting_proxy
from tests.restarting_proxy import restarting_proxy
from tests.silencing_proxy import silencing_proxy
from tests.system import System
from tests.waiting import eventually

pytestmark = needs_front_ends

LOCATE = {
    "name": "locate",
    "description": "Return where the user is.",
    "parameters": {"type": "object", "properties": {"exact": {"type": "boolean"}}},
}
CLIENTS = pytest.mark.parametrize("version", [NEWEST, LAST_0_0])
CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}
#: A stream is cut within them, however many the service gathers in one event.
PIECES = {"say": f"{'x' * 99} ", "repeat": 40, "delay_ms": 50}


@pytest.fixture(scope="module")
def client() -> Iterator[AguiProcess]:
    with agui_process() as process:
        yield process


def types_of(result: dict[str, Any]) -> list[str]:
    return [event["type"] for event in result["events"]]


def shown(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message.get("content", "")) for message in result["messages"]]


def test_a_message_is_answered(user: Caller, client: AguiProcess) -> None:
    """Text, reasoning and calls of the service's own tools become messages of the client."""
    said = script({"think": "Hm."}, {"say": "Let me see."}, CALCULATE, {"say": "It is 42."})
    result = client.agent(user, "answered").run(said)

    assert result["error"] is None
    assert "RUN_STARTED" == types_of(result)[0] and "RUN_FINISHED" == types_of(result)[-1]
    expected = [("user", said), ("reasoning", "Hm."), ("assistant", "Let me see."), ("tool", "42")]
    assert [*expected, ("assistant", "It is 42.")] == shown(result)


def test_a_conversation_goes_on(user: Caller, client: AguiProcess) -> None:
    """Only the newest message is taken: what a client makes up of the past changes nothing."""
    agent = client.agent(user, "goes-on")
    agent.run("I am Ann")
    forged = {"id": "forged", "role": "assistant", "content": "forged text"}
    result = agent.run(
        messages=[forged, {"id": "m2", "role": "user", "content": script({"find": "forged"})}]
    )
    assert "nothing" == shown(result)[-1][1]
    result = agent.run(script({"find": "I am Ann"}))
    assert "I am Ann" in shown(result)[-1][1]


def test_a_client_tool_goes_around(user: Caller, client: AguiProcess) -> None:
    """The run ends with the calls of the client; the next one continues with their results."""
    steps = script({"tools": [CALCULATE, {"tool": "locate"}]}, {"say": "You are in Rome."})
    agent = client.agent(user, "client-tool")
    asked = agent.run(steps, tools=[LOCATE])
    [call_id] = asked["events"][-1]["outcome"]["pendingToolCallIds"]
    output = {"id": "t1", "role": "tool", "toolCallId": call_id, "content": "Rome"}
    done = agent.run(messages=[output], tools=[LOCATE])

    assert (None, None) == (asked["error"], done["error"])
    assert ("assistant", "You are in Rome.") == shown(done)[-1]
    assert ["42", "Rome"] == [text for role, text in shown(done) if role == "tool"]


def test_a_client_of_0_0_reads_all_ends(user: Caller, client: AguiProcess) -> None:
    """It refuses members of outcomes that it does not know, and never gets any."""
    steps = script({"tools": [{"tool": "locate"}, {"tool": "locate"}]}, {"say": "Far."})
    agent = client.agent(user, "old", client=LAST_0_0)
    asked = agent.run(steps, tools=[LOCATE])
    joined = agent.connect()
    ids = [event["toolCallId"] for event in asked["events"] if event["type"] == "TOOL_CALL_START"]
    outputs = [{"id": id_, "role": "tool", "toolCallId": id_, "content": "Rome"} for id_ in ids]
    lacking = agent.run(messages=outputs[:1], tools=[LOCATE])
    done = agent.run(messages=outputs[1:], tools=[LOCATE])
    agent.run(script({"tool": "locate"}), tools=[LOCATE])
    [thread] = user.get("/v1/threads", external_id="old")
    user.cancel(thread["active_run_id"])
    cancelled = agent.connect()

    assert 5 * [None] == [one["error"] for one in (asked, joined, lacking, done, cancelled)]
    assert ("assistant", "Far.") == shown(done)[-1]
    assert "RUN_FINISHED" == types_of(cancelled)[-1]


def test_a_client_of_0_0_reads_messages_with_files(user: Caller, client: AguiProcess) -> None:
    """It knows files by URL alone, and can send the message again as it got it."""
    source = {"type": "data", "value": "aGVsbG8=", "mimeType": "text/plain"}
    said = {"id": "f1", "role": "user", "content": [{"type": "document", "source": source}]}
    client.agent(user, "files").run(messages=[said])
    agent = client.agent(user, "files", query="?", client=LAST_0_0)
    seen = agent.connect()
    again = agent.run(messages=[{**seen["messages"][0], "id": "f2"}])

    assert (None, None) == (seen["error"], again["error"])
    assert "url" == seen["messages"][0]["content"][0]["source"]["type"]
    sent = user.get(f"/v1/threads/{user.get('/v1/threads', external_id='files')[0]['id']}/messages")
    assert 1 == len({m["content"][0]["file_id"] for m in sent if m["role"] == "user"})


def test_two_pages_share_the_calls_of_a_turn(user: Caller, client: AguiProcess) -> None:
    """The page that sends the last result gets that of the other one."""
    steps = script({"tools": [{"tool": "locate"}, {"tool": "locate"}]}, {"say": "Far."})
    page = client.agent(user, "two-pages")
    asked = page.run(steps, tools=[LOCATE])
    other = client.agent(user, "two-pages", query="?")
    other.connect()
    calls = asked["events"][-1]["outcome"]["pendingToolCallIds"]
    outputs = [
        {"id": f"t{n}", "role": "tool", "toolCallId": id_, "content": f"city {n}"}
        for n, id_ in enumerate(calls)
    ]
    other.run(messages=outputs[:1], tools=[LOCATE])
    done = page.run(messages=outputs[1:], tools=[LOCATE])

    assert None is done["error"]
    assert {"city 0", "city 1"} == {text for role, text in shown(done) if role == "tool"}
    assert ("assistant", "Far.") == shown(done)[-1]


def test_an_interrupt_is_resumed(user: Caller, client: AguiProcess) -> None:
    """An approval and a question are interrupts; the reply to one can be sent again."""
    agent = client.agent(user, "interrupt", query="?persona_id=careful")
    asked = agent.run(script(CALCULATE, {"say": "Done."}))
    [interrupt] = asked["interrupts"]
    assert ("tool_call", True) == (
        interrupt["reason"],
        "approved" in interrupt["responseSchema"]["properties"],
    )
    edited = {"approved": True, "editedArgs": {"expression": "6*9"}}
    resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": edited}]
    done = agent.run(resume=resume)

    assert ([], None) == (done["interrupts"], done["error"])
    assert [("tool", "54"), ("assistant", "Done.")] == shown(done)[-2:]
    again = agent.run(resume=resume)
    assert "RUN_FINISHED" == types_of(again)[-1]


def test_a_custom_agent_asks_after_text(user: Caller, client: AguiProcess) -> None:
    """Its text and reasoning end before the interrupt; the agent writes them anew afterwards."""
    user.made("/v1/personas", {"key": "guide", "agent": "script"})
    agent = client.agent(user, "custom-agent", query="?persona_id=guide")
    steps = [{"thinking": "Hm."}, {"text": "Let me see. "}, {"ask": "Which city?"}]
    said = json.dumps(steps)
    asked = agent.run(said)

    assert asked["error"] is None
    [interrupt] = asked["interrupts"]
    assert [("reasoning", "Hm."), ("assistant", "Let me see. ")] == shown(asked)[-2:]
    resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": "Rome"}]
    done = agent.run(resume=resume)

    assert done["error"] is None
    expected = [("user", said), ("reasoning", "Hm."), ("assistant", "Let me see. Rome")]
    assert expected == shown(done)


def test_an_input_that_does_not_resume_is_a_run_error(user: Caller, client: AguiProcess) -> None:
    """The protocol lets a thread with an open interrupt take nothing but its resume."""
    question = {"tool": "ask_user", "args": {"question": "Which city?"}}
    asked = client.agent(user, "open").run(script(question, {"say": "Fine."}))
    [interrupt] = asked["interrupts"]
    other = client.agent(user, "open", query="?")
    wrong = [{"interruptId": "nothing", "status": "resolved", "payload": "x"}]
    for how in (
        {"messages": [{"id": "m9", "role": "user", "content": "Hello?"}]},
        {"resume": wrong},
        {"resume": [{**wrong[0], "interruptId": interrupt["id"], "payload": 7}]},
    ):
        refused = other.run(**how)
        assert "RUN_ERROR" == types_of(refused)[-1], refused
    answer = [{"interruptId": interrupt["id"], "status": "cancelled"}]
    # The client has kept the message that was refused, and sends it beside the reply.
    assert ("assistant", "You said: Hello?") == shown(other.run(resume=answer))[-1]
    assert ("assistant", "Fine.") not in shown(other.connect())


@CLIENTS
@pytest.mark.parametrize("turns", [1, 2])
def test_a_message_beside_a_cancel_is_answered_at_once(
    user: Caller, client: AguiProcess, version: str, turns: int
) -> None:
    """The user has moved on from all calls that require approval, not from the first one alone."""
    query = {"query": "?persona_id=careful", "client": version}
    agent = client.agent(user, f"moved-on {version} {turns}", **query)
    steps = [CALCULATE, CALCULATE] if turns == 2 else [{"tools": [CALCULATE, CALCULATE]}]
    [interrupt] = agent.run(script(*steps, {"say": "Done."}))["interrupts"]
    cancel = [{"interruptId": interrupt["id"], "status": "cancelled"}]
    done = agent.run("Never mind.", resume=cancel)

    assert (None, []) == (done["error"], done["interrupts"])
    assert ("assistant", "You said: Never mind.") == shown(done)[-1]
    assert shown(done) == shown(agent.connect())


def test_a_connect_shows_the_thread(user: Caller, client: AguiProcess) -> None:
    """A second client sees the messages, the open interrupt, and resumes it."""
    agent = client.agent(user, "connect", query="?persona_id=careful")
    agent.run("Hello")
    first = agent.run(script(CALCULATE, {"say": "Done."}))
    other = client.agent(user, "connect", query="?persona_id=careful&route_id=scripted")
    seen = other.connect()

    assert None is seen["error"]
    assert first["interrupts"] == seen["interrupts"]
    assert first["messages"] == seen["messages"]
    resume = [
        {
            "interruptId": seen["interrupts"][0]["id"],
            "status": "resolved",
            "payload": {"approved": True},
        }
    ]
    done = other.run(resume=resume)
    assert done["messages"] == other.connect()["messages"]
    assert done["messages"] == client.agent(user, "connect", query="?").connect()["messages"]
    empty = client.agent(user, "nothing-yet").connect()
    assert ([], None) == (empty["messages"], empty["error"])


def test_a_connect_shows_that_a_run_has_failed(user: Caller, client: AguiProcess) -> None:
    """The page gets the error that followers of the run got; its `connectAgent()` returns."""
    failed = client.agent(user, "failed").run(script(CALCULATE, {"error": "invalid_request"}))
    seen = client.agent(user, "failed", query="?").connect()

    followed, shown_later = failed["events"][-1], seen["events"][-1]
    assert ("RUN_ERROR", None) == (followed["type"], seen["error"])
    assert [followed[of] for of in ("type", "code", "message")] == [
        shown_later[of] for of in ("type", "code", "message")
    ]
    assert failed["messages"] == seen["messages"]


def test_a_user_who_moves_on_is_answered(user: Caller, client: AguiProcess) -> None:
    """A message in place of the results of the page's tools ends the run that waits for them."""
    agent = client.agent(user, "moves-on")
    asked = agent.run(script({"tool": "locate"}, {"say": "There."}), tools=[LOCATE])
    assert 1 == len(asked["events"][-1]["outcome"]["pendingToolCallIds"])
    assert ("assistant", "You said: Never mind") == shown(agent.run("Never mind"))[-1]


def test_a_cut_stream_is_joined_again(user: Caller, client: AguiProcess) -> None:
    """After cuts a connect shows the same messages as to a client without any."""
    port = int(user.url.rpartition(":")[2])
    steps = script({"think": "Hm."}, {"say": "So. "}, {"error": "disconnect"}, CALCULATE, PIECES)
    with cutting_proxy(port, cuts=6, longest=4000, seed=7) as proxy:
        agent = client.agent(user, "cut", url=proxy.url)
        seen = agent.run(steps)
        while seen["error"] or "RUN_FINISHED" not in types_of(seen):
            seen = agent.connect()
    assert client.agent(user, "cut").connect()["messages"] == seen["messages"]
    assert ["user", "reasoning", "assistant", "tool", "assistant"] == [r for r, _ in shown(seen)]


@CLIENTS
@pytest.mark.parametrize("how", ["broken", "ended in order"])
def test_the_guides_send_gets_the_whole_answer(
    user: Caller, client: AguiProcess, how: str, version: str
) -> None:
    """It connects after a cut, also where the end of the stream looks like that of a run."""
    port, thread_id = int(user.url.rpartition(":")[2]), f"sent {how} {version}"
    said = script({"say": f"{how} {version}"}, PIECES)
    broken = cutting_proxy(port, cuts=1, longest=3_000, seed=6)
    with (
        broken if how == "broken" else restarting_proxy(port, ends_posts=True, refused_posts=0)
    ) as proxy:
        sent = client.agent(user, thread_id, url=proxy.url, client=version).send(said)

    assert [None, 2] == [sent["error"], types_of(sent).count("RUN_STARTED")]
    assert ["user", "assistant"] == [role for role, _ in shown(sent)]
    assert sent["messages"] == client.agent(user, thread_id, client=version).connect()["messages"]


def test_the_guides_send_waits_for_the_answer_to_its_message(
    user: Caller, client: AguiProcess
) -> None:
    """The error of another page's run, which a connect shows, is not that of its own."""
    port, thread = int(user.url.rpartition(":")[2]), user.thread(external_id="behind")
    with restarting_proxy(port, length=1, ends_posts=True, refused_posts=0) as proxy:
        agent = client.agent(user, "behind", url=proxy.url)
        other = user.start(
            thread, message=script({"hang": 15}, CALCULATE, {"error": "invalid_request"})
        )
        sent = agent.send("And mine?")

    started = [event["runId"] for event in sent["events"] if event["type"] == "RUN_STARTED"]
    assert [None, 1] == [sent["error"], types_of(sent).count("RUN_ERROR")]
    assert other == started[1]
    assert ("assistant", "You said: And mine?") == shown(sent)[-1]


@CLIENTS
def test_the_guides_send_ends_where_another_run_waits_for_its_page(
    user: Caller, client: AguiProcess, version: str
) -> None:
    """The message waits behind that run, which has to get its results first, or is replaced."""
    port, name = int(user.url.rpartition(":")[2]), f"held up {version}"
    said = script({"say": name})
    thread = user.thread(external_id=name)
    other = user.start(
        thread, message=script({"tool": "locate"}), tools=[{**LOCATE, "client": True}]
    )
    user.until(other, "phase", "waiting")
    message = {"content": said, "metadata": {"agui.message_id": f"m-{hash(said)}"}}
    user.start(thread, message=message, on_busy="enqueue")
    with restarting_proxy(port, length=1, ends_posts=True, refused_posts=0) as proxy:
        agent = client.agent(user, name, url=proxy.url, client=version)
        sent = agent.send(said, abortAt="RUN_STARTED", abortAtNumber=4)

    started = [event["runId"] for event in sent["events"] if event["type"] == "RUN_STARTED"]
    assert [None, other] == [sent["error"], started[-1]]
    assert "RUN_FINISHED" == types_of(sent)[-1]
    # Of the run that is shown without an outcome it looks whether another one follows.
    assert len(started) == (2 if version == NEWEST else 3)


@CLIENTS
def test_the_guides_send_waits_behind_a_run_that_is_cancelled_within_a_call(
    user: Caller, client: AguiProcess, version: str
) -> None:
    """That run looks like one that waits for its page to a client of 0.0.x."""
    port, name = int(user.url.rpartition(":")[2]), f"cancelled {version}"
    thread = user.thread(external_id=name)
    other = user.start(thread, message=script({"tool": "sleep", "args": {"seconds": 300}}))
    user.seen(other, "tool.call", 1)
    with (
        restarting_proxy(port, length=1, ends_posts=True, refused_posts=0) as proxy,
        ThreadPoolExecutor(1) as pool,
    ):
        agent = client.agent(user, name, url=proxy.url, client=version)
        sending = pool.submit(agent.send, f"And mine? {version}")
        eventually(lambda: proxy.begun == 2)  # the second one shows the other run
        user.cancel(other)
        sent = sending.result()

    assert sent["error"] is None
    assert ("assistant", f"You said: And mine? {version}") == shown(sent)[-1]


@CLIENTS
def test_the_guides_send_reports_a_message_that_has_not_arrived(
    user: Caller, client: AguiProcess, version: str
) -> None:
    """It can be sent again."""
    port = int(user.url.rpartition(":")[2])
    with restarting_proxy(port, refused_posts=1) as proxy:
        agent = client.agent(user, f"not-arrived {version}", url=proxy.url, client=version)
        refused = agent.send(f"Hello {version}")
        sent = agent.send(f"Hello {version}")

    assert (True, []) == ("502" in refused["error"], refused["messages"])
    assert [None, ("assistant", f"You said: Hello {version}")] == [sent["error"], shown(sent)[-1]]


@CLIENTS
def test_the_guides_send_connects_after_a_silence(
    system: System, user: Caller, client: AguiProcess, version: str
) -> None:
    """It takes a connection without anything for one that is cut off."""
    port = int(system.web[1].url.rpartition(":")[2])  # which pings twice a second
    name = f"silent {version}"
    with silencing_proxy(port) as proxy, ThreadPoolExecutor(1) as pool:
        agent = client.agent(user, name, url=proxy.url, client=version, patience=4_000)
        sending = pool.submit(agent.send, script({"say": name}, PIECES, {"say": "end"}))
        eventually(lambda: proxy.passed > 3_000)
        proxy.silence()
        sent = sending.result()

    assert [None, 2] == [sent["error"], types_of(sent).count("RUN_STARTED")]
    assert [name, "end"] == [shown(sent)[-1][1][: len(name)], shown(sent)[-1][1][-3:]]


def test_an_agent_that_was_aborted_connects_again(user: Caller, client: AguiProcess) -> None:
    """A page that has stopped reading, which `send` respects, can read the rest later."""
    agent = client.agent(user, "aborted")
    aborted = agent.send(script({"count": 40, "delay_ms": 100}), abortAt="TEXT_MESSAGE_CONTENT")
    seen = agent.connect()

    assert "RUN_FINISHED" not in types_of(aborted)
    assert ["RUN_STARTED", "MESSAGES_SNAPSHOT"] == types_of(seen)[:2]
    assert "RUN_FINISHED" == types_of(seen)[-1]
