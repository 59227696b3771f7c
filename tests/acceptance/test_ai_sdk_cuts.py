"""Pages of the AI SDK that lose their connection, as the guide has them."""

import secrets

from tests.ai_sdk_chat import needs_front_ends, open_chat
from tests.ai_sdk_pages import KINDS, Pages
from tests.caller import Caller, script
from tests.cutting_proxy import cutting_proxy
from tests.system import System

pytestmark = needs_front_ends

CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}
VERSION = "7.0.173"


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
                        {"say": "x ", "repeat": 40, "delay_ms": 10}, CALCULATE, {"say": "end"}
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
    first_text = script({"say": "x ", "repeat": 60, "delay_ms": 25}, {"say": "end"})
    with (
        cutting_proxy(port, cuts=1, longest=3_000, seed=6) as proxy,
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
