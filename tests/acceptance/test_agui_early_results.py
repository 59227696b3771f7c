"""Pages of AG-UI that execute calls as soon as they are shown them, as CopilotKit does."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.test_agui import CALCULATE, LOCATE, shown, types_of
from tests.agui_client import LAST_0_0, NEWEST, Agent, AguiProcess, agui_process
from tests.ai_sdk_chat import needs_front_ends
from tests.caller import Caller, script

pytestmark = needs_front_ends

TOOL = {"tool": "locate"}
ASK = {"tool": "ask_user", "args": {"question": "Where to?"}}
YES = {"approved": True}


@pytest.fixture(scope="module")
def client() -> Iterator[AguiProcess]:
    with agui_process() as process:
        yield process


@pytest.fixture(scope="module")
def query(user: Caller) -> str:
    """The address of a persona that requires approval of the calculator, and of a page's tool."""
    fields: dict[str, Any] = {"tools": ["calculator", "ask_user"], "overrides": ["tools"]}
    guarded = {**LOCATE, "name": "guarded", "client": True}
    fields |= {"client_tools": [guarded], "require_approval": ["calculator", "guarded"]}
    persona = user.made("/v1/personas", {"key": "eager", **fields})
    return f"?persona_id={persona['id']}"


class Page:
    """An agent in a thread of its own, and what its page sends with each request."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.said: dict[str, Any] = {}

    def say(self, *steps: Any) -> None:
        self._run(script(*steps))

    def reply(self, payload: Any, *results: str, **more: Any) -> None:
        """Send the reply to the interrupt, with results of the first of the calls, in order."""
        [interrupt] = self.said["interrupts"]
        entry = {"interruptId": interrupt["id"], "status": "resolved", "payload": payload}
        self.send(*results, resume=[entry], **more)

    def repeat(self, payload: Any, *results: str) -> None:
        """Send the reply behind results of the call to approve, and as one more.

        As CopilotKit does, with the `runId` of the run that was interrupted.
        """
        [interrupt] = self.said["interrupts"]
        sent = {"call_id": interrupt["toolCallId"], "runId": self.said["events"][0]["runId"]}
        self.reply(payload, *results, json.dumps(payload), **sent)

    def send(
        self,
        *results: str,
        call_id: str | None = None,
        then_says: str | None = None,
        **more: Any,
    ) -> None:
        ids = self.call_ids() if call_id is None else [call_id] * len(results)
        messages = [
            {"id": secrets.token_hex(8), "role": "tool", "toolCallId": id_, "content": one}
            for id_, one in zip(ids, results, strict=False)
        ]
        if then_says is not None:
            messages.append({"id": secrets.token_hex(8), "role": "user", "content": then_says})
        self._run(messages=messages, **more)

    def _run(self, *said: str, **more: Any) -> None:
        self.said = self._agent.run(*said, tools=[LOCATE], **more)
        assert self.said["error"] is None

    def call_ids(self) -> list[str]:
        """Return the ids of the calls of the page's tools, in order."""
        calls = [call for message in self.said["messages"] for call in message.get("toolCalls", ())]
        return [call["id"] for call in calls if call["function"]["name"] in ("locate", "guarded")]

    def arguments(self) -> list[Any]:
        """Return the arguments of all calls, in order."""
        calls = [call for message in self.said["messages"] for call in message.get("toolCalls", ())]
        return [json.loads(call["function"]["arguments"]) for call in calls]

    def results(self) -> list[str]:
        """Return the results of all calls, sorted: clients keep the order that they know."""
        return sorted(text for role, text in shown(self.said) if role == "tool")

    def connected(self) -> list[str]:
        self.said = self._agent.connect()
        return self.results()


@pytest.fixture
def page(request: Any, user: Caller, client: AguiProcess, query: str) -> Page:
    thread = f"eager-{secrets.token_hex(8)}"
    return Page(client.agent(user, thread, query=query, client=request.param))


ON_CLIENTS = pytest.mark.parametrize("page", [NEWEST, LAST_0_0], indirect=True)


@ON_CLIENTS
@pytest.mark.parametrize(
    ("calls", "payload", "results"),
    [([CALCULATE, TOOL], YES, ["42", "Rome"]), ([TOOL, ASK], "Oslo", ["Oslo", "Rome"])],
)
def test_a_result_that_comes_with_a_reply_counts(
    page: Page, calls: list[Any], payload: Any, results: list[str]
) -> None:
    """The run makes the call once it has the reply, and does not wait for the page again."""
    page.say({"tools": calls}, {"say": "Done."})
    page.reply(payload, "Rome")

    assert ("assistant", "Done.") == shown(page.said)[-1]
    assert results == page.results()
    assert 1 == types_of(page.said).count("TOOL_CALL_RESULT")
    assert results == page.connected()


@ON_CLIENTS
@pytest.mark.parametrize("text", ["Oslo", "And the weather?"])
def test_a_result_counts_though_a_message_comes_with_the_reply(page: Page, text: str) -> None:
    """The page shows the reply as a message, or the user has said more."""
    page.say({"tools": [TOOL, ASK]}, {"say": "Done."})
    page.reply("Oslo", "Rome", then_says=text)

    assert ("assistant", "Done.") == shown(page.said)[-1]
    assert ["Oslo", "Rome"] == page.connected()


@ON_CLIENTS
def test_a_result_of_an_earlier_reply_counts(page: Page) -> None:
    """The run has asked twice before it made the call, and then waits for another one."""
    page.say({"tools": [CALCULATE, TOOL, ASK]}, TOOL, {"say": "Done."})
    page.reply(YES, "Rome")
    page.reply("Oslo")
    assert "TOOL_CALL_END" == types_of(page.said)[-2]  # the run waits for the call of another turn
    page.send("Rome", "Bern")

    assert ("assistant", "Done.") == shown(page.said)[-1]
    assert ["42", "Bern", "Oslo", "Rome"] == page.connected()


@ON_CLIENTS
def test_the_run_waits_for_results_that_did_not_come_with_the_reply(page: Page) -> None:
    """The page has the others shown when they count, and sends these alone or with them."""
    page.say({"tools": [CALCULATE, TOOL, TOOL]}, {"say": "Done."})
    page.reply(YES, "Rome")
    assert "RUN_FINISHED" == types_of(page.said)[-1]
    page.send("Rome", "Oslo")

    assert ("assistant", "Done.") == shown(page.said)[-1]
    assert ["42", "Oslo", "Rome"] == page.connected()


@ON_CLIENTS
@pytest.mark.parametrize(
    "payload", [{"approved": False, "reason": "no"}, {**YES, "editedArgs": {}}]
)
def test_a_result_of_another_call_than_the_approved_one_does_not_count(
    page: Page, payload: dict[str, Any]
) -> None:
    """The page has executed what the person has denied, or has replaced."""
    page.say({"tool": "guarded", "args": {"exact": True}}, {"say": "Done."})
    page.reply(payload, "Rome")

    if payload["approved"]:
        page.send("Oslo")
    assert ("assistant", "Done.") == shown(page.said)[-1]
    assert ["Oslo" if payload["approved"] else "The call was denied: no"] == page.connected()


@ON_CLIENTS
def test_a_result_does_not_count_beside_a_cancel_with_a_message(page: Page) -> None:
    """The user has moved on before the run made the call that the page has executed."""
    page.say({"tool": "guarded"}, {"say": "Done."})
    [interrupt] = page.said["interrupts"]
    cancel = [{"interruptId": interrupt["id"], "status": "cancelled"}]
    page.send("Rome", then_says="Never mind.", resume=cancel)

    assert ("assistant", "You said: Never mind.") == shown(page.said)[-1]
    assert [] == page.results() == page.connected()


@ON_CLIENTS
def test_a_result_from_before_an_edit_is_not_sent_with_the_next_one(page: Page) -> None:
    """The page loses it with the edit, and so executes the call again."""
    page.say({"tools": [{"tool": "guarded", "args": {"exact": True}}, TOOL]}, {"say": "Done."})
    page.reply({**YES, "editedArgs": {"exact": False}}, "Rome")
    assert [] == page.results()
    located = page.call_ids()[1]
    page.send("Bern", call_id=located)
    assert "RUN_FINISHED" == types_of(page.said)[-1]
    assert ["Bern"] == page.results()
    page.send("Oslo")

    assert ("assistant", "Done.") == shown(page.said)[-1]
    assert ["Bern", "Oslo"] == page.connected()


@ON_CLIENTS
@pytest.mark.parametrize(
    ("call", "edited"),
    [(CALCULATE, {"expression": "2*5"}), ({"tool": "guarded"}, {"exact": False})],
)
def test_a_page_is_shown_the_arguments_that_were_executed(
    page: Page, call: dict[str, Any], edited: dict[str, Any]
) -> None:
    """A person has replaced those of the model, for the service or for the page."""
    page.say(call, {"say": "Done."})
    page.reply({**YES, "editedArgs": edited})
    executed = page.arguments()
    if call != CALCULATE:
        page.send("Rome")
    page.connected()

    assert ("assistant", "Done.") in shown(page.said)
    assert [[edited]] * 2 == [executed, page.arguments()]


@ON_CLIENTS
def test_a_page_that_is_asked_again_is_shown_the_proposed_arguments(page: Page) -> None:
    """A person's own do not fit the tool, and a plain approval is one of those of the model."""
    page.say(CALCULATE, {"say": "Done."})
    proposed = page.arguments()
    page.reply({**YES, "editedArgs": {"expression": 5}})
    shown_again = page.arguments()
    page.reply(YES)
    executed = page.arguments()

    assert ["42"] == page.connected()
    assert [proposed] * 3 == [shown_again, executed, page.arguments()]


@ON_CLIENTS
def test_a_result_of_the_approved_call_counts(page: Page) -> None:
    """The page was too early, and the person agrees."""
    page.say({"tool": "guarded"}, {"say": "Done."})
    page.reply(YES, "Rome")

    assert ("assistant", "Done.") == shown(page.said)[-1]
    assert ["Rome"] == page.connected()


@ON_CLIENTS
@pytest.mark.parametrize("results", [["Rome"], []])
def test_a_reply_that_is_sent_as_a_result_as_well_does_not_count(
    page: Page, results: list[str]
) -> None:
    """The result is the one before it; without any the run waits for the page's."""
    page.say({"tool": "guarded"}, {"say": "Done."})
    page.repeat(YES, *results)
    if not results:
        assert "RUN_FINISHED" == types_of(page.said)[-1]
        page.send("Rome")

    assert ("assistant", "Done.") == shown(page.said)[-1]
    assert ["Rome"] == page.connected()


@ON_CLIENTS
def test_a_reply_that_is_sent_as_a_result_is_not_shown_as_one(page: Page) -> None:
    """The page has the result of the service in its place."""
    page.say(CALCULATE, {"say": "Done."})
    page.repeat(YES)

    assert ("assistant", "Done.") == shown(page.said)[-1]
    assert ["42"] == page.results()
