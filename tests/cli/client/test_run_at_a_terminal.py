"""`arkloop run` with a person at the keyboard."""

import re
import signal

import pytest

from tests.caller import Caller, script
from tests.cli.client.followed_runs import ASK, HANG, first_line, run_of
from tests.cli.client.relay import Relay
from tests.cli.command import Arkloop
from tests.waiting import eventually

pytestmark = pytest.mark.processes


def test_at_a_terminal_arguments_appear_while_the_model_writes_them(
    arkloop: Arkloop, user: Caller
) -> None:
    """The persona streams them; the call is not shown a second time."""
    fields = {"key": "streams", "tools": ["calculator"], "stream_tool_arguments": True}
    persona = user.made("/v1/personas", fields)
    call = {"tool": "calculator", "args": {"expression": "40+2"}, "piece": 4, "delay_ms": 20}
    command = ("run", "--persona", persona["id"], script({"say": "So: "}, call, {"say": "done"}))

    with arkloop.at_terminal(*command) as terminal:
        assert 0 == terminal.ended()

    assert 1 == terminal.screen.count('→ calculator {"expression": "40+2"}')
    assert 1 == terminal.screen.count("40+2")
    assert "← calculator 42" in terminal.screen


def test_at_a_terminal_text_appears_while_the_run_goes_on(arkloop: Arkloop, user: Caller) -> None:
    """The first words are on the screen long before the last ones exist."""
    with arkloop.at_terminal("run", script({"say": "the first words "}, HANG)) as terminal:
        terminal.until("the first words")

        run_id = run_of(terminal.screen)
        assert "running" == user.get_run(run_id)["status"]
        user.cancel(run_id)
        assert 130 == terminal.ended()
        assert "cancelled: " in terminal.screen


def test_a_person_at_the_keyboard_answers_the_question(arkloop: Arkloop, user: Caller) -> None:
    """The question and its options are shown; what is typed goes to the run."""
    with arkloop.at_terminal("run", script(ASK, {"say": "thank you"})) as terminal:
        terminal.until("? Which one?\n  1) red\n  2) blue\nType an answer, or the number of one:\n")
        terminal.type("")
        terminal.type("1")

        assert 0 == terminal.ended()
        assert "← ask_user red" in terminal.screen
        assert "thank you" in terminal.screen


def test_keys_hit_before_the_question_do_not_answer_it(arkloop: Arkloop, user: Caller) -> None:
    """Somebody who leans on Enter, or types ahead, approves nothing unseen."""
    with arkloop.at_terminal("run", script({"say": "wait "}, {"hang": 8}, ASK)) as terminal:
        terminal.until("wait")
        terminal.type("too early")
        terminal.until("number of one:")
        terminal.type("blue")

        assert 0 == terminal.ended()
        assert "← ask_user blue" in terminal.screen


def test_a_person_at_the_keyboard_approves_a_call(arkloop: Arkloop) -> None:
    """`yes` runs it; an unclear reply is asked again; `no` denies it, and the model gets it all."""
    tool = {"tool": "calculator", "args": {"expression": "6*7"}}
    steps = script(tool, tool, {"say": "done"})
    with arkloop.at_terminal("run", "--persona", "careful", steps) as terminal:
        terminal.until("`yes` runs it")
        terminal.type("yes")
        terminal.until("← calculator 42")
        eventually(lambda: terminal.screen.count("`yes` runs it") == 2)
        terminal.type("too expensive")
        eventually(lambda: terminal.screen.count("`yes` runs it") == 3)
        terminal.type("no, too expensive")

        assert 0 == terminal.ended()
        assert re.search("✗ calculator .*too expensive", terminal.screen)


def test_a_person_sees_the_whole_call_that_they_allow(arkloop: Arkloop) -> None:
    """A user approves a tool call with its complete arguments in view, none abbreviated or
    invisible.
    """
    expression = f"1{' + 1' * 100}  -\u202e\u200b 7"
    steps = script({"tool": "calculator", "args": {"expression": expression}}, {"say": "done"})
    with arkloop.at_terminal("run", "--persona", "careful", steps) as terminal:
        terminal.until("`yes` runs it")
        shown = f"1{' + 1' * 100}  -\\u202e\\u200b 7"
        assert f'{{\n  "expression": "{shown}"\n}}\n' in terminal.screen
        terminal.type("no")

        assert 0 == terminal.ended()


def test_a_person_at_the_keyboard_changes_the_arguments_of_a_call(arkloop: Arkloop) -> None:
    """A JSON object is made the call's arguments; a slip in it is no denial."""
    steps = script({"tool": "calculator", "args": {"expression": "6*7"}}, {"say": "done"})
    with arkloop.at_terminal("run", "--persona", "careful", steps) as terminal:
        terminal.until("`yes` runs it")
        terminal.type('{"expression": "6*8')
        terminal.until("This is not valid JSON")
        terminal.type('{"expression": "6*8"}')

        assert 0 == terminal.ended()
        assert "← calculator 48" in terminal.screen


def test_a_question_answered_elsewhere_does_not_hold_up_the_terminal(
    arkloop: Arkloop, user: Caller
) -> None:
    """The run continues at once, without any input."""
    with arkloop.at_terminal("run", script(ASK, {"say": "done"})) as terminal:
        terminal.until("number of one:")
        assert 200 == user.answer(run_of(terminal.screen), "red").status_code

        assert 0 == terminal.ended()
        assert "answered: red" in terminal.screen


def test_a_terminal_is_told_which_text_is_void(arkloop: Arkloop) -> None:
    """What is on the screen cannot be taken back, so a line says that it does not count."""
    steps = script({"say": "first "}, {"error": "disconnect"}, {"say": "last"})
    with arkloop.at_terminal("run", steps) as terminal:
        assert 0 == terminal.ended()
        void = "✗ Discard the unfinished text above (provider.connection)"
        again = r"the model call failed \(provider\.connection\); try 2 in .* s"
        shown = f"first \n{again}\n{re.escape(void)}.*\nfirst last\ncompleted"
        assert re.search(shown, terminal.screen)


def test_a_model_cannot_steer_the_terminal(arkloop: Arkloop) -> None:
    """Escape sequences and markup in what a model says are shown, not obeyed, in a pipe too."""
    said = script({"say": "a\x1b]0;title\x07b[red]c"})
    with arkloop.at_terminal("run", said) as terminal:
        assert 0 == terminal.ended()
        assert "a\ufffd]0;title\ufffdb[red]c" in terminal.screen
    assert "a\ufffd]0;title\ufffdb[red]c\n" == arkloop.stdout("run", said)
    assert '"content":"a\\u001b]0;title\\u0007b[red]c"' in arkloop.stdout("run", "--json", said)


def test_ctrl_c_cancels_the_run(arkloop: Arkloop, user: Caller) -> None:
    """The run ends as cancelled, its text so far is printed, the exit status is 130."""
    with arkloop.started("run", script({"say": "so far "}, HANG)) as process:
        run_id = run_of(first_line(process))
        user.seen(run_id, "message.delta")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)

    assert (130, b"so far \n") == (process.returncode, stdout)
    assert b"cancelled: " in stderr
    assert "cancelled" == user.get_run(run_id)["status"]


def test_ctrl_c_cancels_a_run_that_waits_for_an_answer(arkloop: Arkloop, user: Caller) -> None:
    """Ctrl-C cancels a waiting run without any input."""
    with arkloop.at_terminal("run", script(ASK)) as terminal:
        terminal.until("number of one:")
        terminal.process.send_signal(signal.SIGINT)

        assert 130 == terminal.ended()
        assert "cancelled" == user.get_run(run_of(terminal.screen))["status"]


def test_a_second_ctrl_c_leaves_at_once(arkloop: Arkloop, relay: Relay) -> None:
    """It does not wait for a server that does not answer any more."""
    with arkloop.with_(ARKLOOP_URL=relay.url).at_terminal("run", script(HANG)) as terminal:
        terminal.until("in thread")
        relay.passing.clear()
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("press Ctrl-C again")
        terminal.process.send_signal(signal.SIGINT)

        assert 130 == terminal.process.wait(30)
