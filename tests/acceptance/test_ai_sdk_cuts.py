"""Pages of the AI SDK that lose their connection, as the guide has them."""

import re
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.ai_sdk_chat import needs_front_ends, open_chat
from tests.ai_sdk_pages import KINDS, MODULES, NODE, ROOT, Pages
from tests.caller import Caller, script
from tests.cutting_proxy import cutting_proxy
from tests.restarting_proxy import restarting_proxy
from tests.silencing_proxy import silencing_proxy
from tests.system import System

pytestmark = needs_front_ends

CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}
VERSION = "7.0.173"
#: An answer of such words is cut, however many the service gathers in one piece of it.
WORD = "x" * 99
#: For a proxy's first connection: it is cut in an answer, or before the response begins.
IN_ANSWER = {"cuts": 1, "longest": 3_000, "seed": 6}
IN_HEAD = {"cuts": 1, "longest": 1, "seed": 1}


def new_id() -> str:
    return secrets.token_urlsafe(12)


def test_pages_get_the_whole_answer_through_cuts(system: System, user: Caller) -> None:
    """Cuts at random bytes, up to ten, change nothing, with each client that resumes."""
    port = system.web[0].settings.port
    with Pages() as pages:
        for number, (ai, version, transport) in enumerate(KINDS):
            with cutting_proxy(port, cuts=10, longest=3_000, seed=number) as proxy:
                result = pages.play(
                    number,
                    url=proxy.url,
                    direct=user.url,
                    token=user.token,
                    chat=new_id(),
                    ai=ai,
                    version=version,
                    transport=transport,
                    text=script(
                        {"say": f"{WORD} ", "repeat": 40, "delay_ms": 10}, CALCULATE, {"say": "end"}
                    ),
                )
            assert [] == result["faults"]
            assert 10 > proxy.cuts_left


def test_a_reloaded_page_continues_the_answer_that_was_cut_off(
    system: System, user: Caller
) -> None:
    """`WorkflowChatTransport` names the chat, in which the next message is answered by then."""
    chat_id, port = new_id(), system.web[0].settings.port
    setup = {"version": VERSION}
    first_text = script({"say": f"{WORD} ", "repeat": 60, "delay_ms": 150}, {"say": "end"})
    with (
        cutting_proxy(port, **IN_ANSWER) as proxy,
        open_chat(user, chat_id, **setup) as first,
        open_chat(user, chat_id, **setup) as other,
        open_chat(user, chat_id, **setup, url=proxy.url, transport="workflow") as reloaded,
    ):
        proxy.is_open.clear()
        first.do("begin", text=first_text)
        first.do("until", text="x x")
        other.do("begin", text=script({"say": "y ", "repeat": 200}))
        reloaded.do("resuming")
        first.do("settle")
        other.do("settle")
        proxy.is_open.set()
        reloaded.do("settle")

        assert ("ready", None) == reloaded.status == first.status
        assert first.answer == reloaded.answer
        assert other.text.startswith("y y ")


@pytest.mark.parametrize("end", [{"say": "end"}, {"tool": "ask_user", "args": {"question": "?"}}])
def test_an_answer_that_ended_while_its_page_was_cut_off_is_resumed(
    system: System, user: Caller, end: dict[str, Any]
) -> None:
    """The page gets the rest of it, and what the run waits for."""
    chat_id, port = new_id(), system.web[0].settings.port
    said = script({"say": f"{WORD} ", "repeat": 60, "delay_ms": 25}, end)
    with (
        cutting_proxy(port, **IN_ANSWER) as proxy,
        open_chat(user, chat_id, version=VERSION, url=proxy.url) as page,
    ):
        proxy.is_open.clear()
        page.do("begin", text=said)
        page.do("settle")
        assert "error" == page.status[0]
        run = user.until(page.answer["id"], "status", "completed", "waiting_for_input")
        proxy.is_open.set()
        page.do("resume")

        assert ("ready", None) == page.status
        assert run["status"] == page.answer["metadata"]["arkloop"]["status"]
        resumed = page.answer["parts"]
        assert resumed == page.do("load").answer["parts"]
        assert resumed == page.do("resume").answer["parts"]


@pytest.mark.parametrize("ai", ["ai5", "ai6", "ai7"])
def test_a_page_whose_connection_falls_silent_is_cut_off(
    system: System, user: Caller, ai: str
) -> None:
    """It resumes then; a model that is silent for longer is not taken for that."""
    port = int(system.web[1].url.rpartition(":")[2])  # which pings twice a second
    said = script({"say": f"{WORD} ", "repeat": 60, "delay_ms": 25}, {"hang": 6}, {"say": "end"})
    setup: dict[str, Any] = {"version": VERSION, "patience": 4_000}
    with (
        silencing_proxy(port) as proxy,
        open_chat(user, new_id(), ai, **setup, url=proxy.url, direct=user.url) as page,
    ):
        page.do("begin", text=said)
        page.do("until", text="x x")
        proxy.silence()
        page.do("settle")
        assert ("error", "The connection fell silent.") == page.status
        page.do("load").do("resume")

        assert ("ready", None, f"{WORD} " * 60 + "end") == (*page.status, page.text)


@pytest.mark.parametrize("ai", ["ai5", "ai6", "ai7"])
def test_a_message_that_never_arrived_is_sent_again(system: System, user: Caller, ai: str) -> None:
    """The guide's `recover` does so, and the model reads it before the next one."""
    with (
        restarting_proxy(system.web[0].settings.port, refused_posts=1) as proxy,
        open_chat(user, new_id(), ai, version=VERSION, url=proxy.url, direct=user.url) as page,
    ):
        page.do("send", text="I am Ann")
        assert "error" == page.status[0]
        page.do("recover")
        assert ("ready", None, "You said: I am Ann") == (*page.status, page.text)
        page.do("send", text=script({"find": "I am Ann"}))
        assert "I am Ann" in page.text
        assert ["user", "assistant"] * 2 == [one["role"] for one in page.do("load").messages]


def test_a_message_that_got_no_response_is_not_sent_again(system: System, user: Caller) -> None:
    """The guide's `recover` resumes its answer."""
    with (
        cutting_proxy(system.web[0].settings.port, **IN_HEAD) as proxy,
        open_chat(user, new_id(), version=VERSION, url=proxy.url) as page,
    ):
        page.do("send", text="Hello")
        assert "error" == page.status[0]
        page.do("recover")
        assert ("ready", None, "You said: Hello") == (*page.status, page.text)
        assert 1 == page.said["posts"]


@pytest.mark.parametrize("again", ["resume", "submit"])
def test_a_page_whose_answer_got_no_response_sees_the_next_question(
    system: System, user: Caller, again: str
) -> None:
    """It resumes, or sends the answer again as a second page does that has the same one."""
    chat_id, port = new_id(), system.web[0].settings.port
    ask = {"tool": "ask_user", "args": {"question": "?"}}
    setup: dict[str, Any] = {"version": VERSION, "automatic": True}
    with (
        cutting_proxy(port, **IN_HEAD) as proxy,
        open_chat(user, chat_id, **setup) as first,
        open_chat(user, chat_id, **setup, url=proxy.url, direct=user.url) as second,
    ):
        first.do("send", text=script(ask, {"say": "Well. "}, ask, {"say": "Bye."}))
        call_id, run_id = first.call("ask_user")["toolCallId"], first.answer["id"]
        proxy.is_open.clear()
        second.do("load").do("output", tool="ask_user", toolCallId=call_id, output="a")
        assert "error" == second.status[0]
        user.seen(run_id, "run.waiting_for_input", 2)
        proxy.is_open.set()
        second.do(again)

        first.do("output", tool="ask_user", toolCallId=call_id, output="a")
        for page in (second, first):
            assert ("ready", None, "Well. ") == (*page.status, page.text)
        asked = second.answer["parts"][-1]
        assert "input-available" == asked["state"]
        second.do("output", tool="ask_user", toolCallId=asked["toolCallId"], output="b")
        assert ("ready", None, "Well. Bye.") == (*second.status, second.text)


def test_a_page_catches_up_with_the_answer_of_another_device(user: Caller) -> None:
    """It shows a question that the other one has answered; the run asks the next, and ends."""
    chat_id = new_id()
    ask = {"tool": "ask_user", "args": {"question": "?"}}
    setup: dict[str, Any] = {"version": VERSION, "automatic": True}
    with open_chat(user, chat_id, **setup) as first, open_chat(user, chat_id, **setup) as second:
        first.do("send", text=script(ask, {"say": "Well. "}, ask, {"say": "Bye."}))
        second.do("load")
        for said in ("Well. ", "Well. Bye."):
            asked = first.answer["parts"][-1]
            first.do("output", tool="ask_user", toolCallId=asked["toolCallId"], output="a")
            # The second time there is nothing new, and nothing is shown twice.
            for _ in range(2):
                second.do("resume")
                assert ("ready", None, said) == (*second.status, second.text)
        assert first.answer["parts"] == second.answer["parts"]


def test_a_transport_that_has_given_up_is_resumed(system: System, user: Caller) -> None:
    """`WorkflowChatTransport` does so where a connection is refused; nothing is there twice."""
    chat_id, port = new_id(), system.web[0].settings.port
    ask = {"tool": "ask_user", "args": {"question": "?"}}
    setup: dict[str, Any] = {"version": VERSION, "transport": "workflow"}
    with (
        cutting_proxy(port, **IN_ANSWER) as proxy,
        open_chat(user, chat_id, **setup, url=proxy.url) as page,
        open_chat(user, chat_id, **setup) as reloaded,
    ):
        proxy.refuses = True
        page.do("begin", text=script({"say": f"{WORD} ", "repeat": 60, "delay_ms": 25}, ask))
        page.do("settle")
        assert ("error", "fetch failed") == page.status
        proxy.refuses = False
        page.do("resume")
        assert ("ready", None, f"{WORD} " * 60) == (*page.status, page.text)

        loaded = reloaded.do("load").answer["parts"]
        assert page.answer["parts"] == loaded == reloaded.do("resume").answer["parts"]


def test_the_guides_transport_compiles(tmp_path: Path) -> None:
    """TypeScript accepts it in its strict mode."""
    guide = (ROOT / "docs" / "how-to" / "ai-sdk.md").read_text()
    blocks = re.findall(r"^```tsx\n(.*?)^```", guide, re.M | re.S)
    [block] = [one for one in blocks if "new WorkflowChatTransport" in one]
    given = "declare const url: string, version: string, headers: Record<string, string>;"
    imported = 'import { WorkflowChatTransport } from "@ai-sdk/workflow";'
    (tmp_path / "page.ts").write_text("\n".join((imported, given, block)))
    (tmp_path / "node_modules").symlink_to(MODULES)
    options = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"]
    options += ["--lib", "es2023,dom", "--module", "esnext", "--moduleResolution", "bundler"]
    command = [str(NODE), str(MODULES / "typescript/bin/tsc"), *options, "page.ts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stdout)
