"""`arkloop run`, as people and scripts meet it: the real command against a running system."""

import json
import re
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.test_files import shown
from tests.caller import Caller, script, types
from tests.cli.client.relay import Relay
from tests.cli.command import Arkloop
from tests.contents import png
from tests.system import System
from tests.waiting import eventually

ASK = {"tool": "ask_user", "args": {"question": "Which one?", "options": ["red", "blue"]}}
HANG = {"hang": 60}


def run_of(text: str | bytes) -> str:
    """Return the run's id, as the command prints it."""
    text = text if isinstance(text, str) else text.decode()
    found = re.search("run ([0-9a-f-]{36}) in thread", text)
    assert found is not None, text
    return found[1]


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().decode()


# ---- in a pipe -----------------------------------------------------------------------


def test_in_a_pipe_standard_output_is_the_answer_and_nothing_else(arkloop: Arkloop) -> None:
    """`answer=$(arkloop run …)` holds the model's words; the rest is on standard error."""
    done = arkloop("run", "Good morning")

    assert (0, b"You said: Good morning\n") == (done.returncode, done.stdout)
    assert re.search(r"completed: \d+ \+ \d+ tokens, \$0\.0", done.stderr.decode())


def test_the_message_may_come_from_standard_input(arkloop: Arkloop) -> None:
    """`-` reads a message that is too long for an argument, or comes from another command."""
    message = "word " * 40_000

    done = arkloop("run", "-", input=f"{message}\n".encode())

    assert (0, f"You said: {message}\n") == (done.returncode, done.stdout.decode())


def test_files_are_sent_with_the_message(arkloop: Arkloop) -> None:
    """`--file` and `--image` are one option: the server finds out what each is."""
    (arkloop.folder / "a.png").write_bytes(png())
    (arkloop.folder / "notes.txt").write_text("at noon")

    done = arkloop("run", "Look", "--image", "a.png", "--file", "notes.txt")

    expected = f'You said: Look\n<file name="notes.txt">\nat noon\n</file> {shown(png())}\n'
    assert (0, expected) == (done.returncode, done.stdout.decode()), done.stderr


def test_a_file_that_is_refused_leaves_nothing(arkloop: Arkloop, user: Caller) -> None:
    """The server's reason is printed, no thread was created, and files sent before are gone."""
    (arkloop.folder / "a.txt").write_text("fine")
    (arkloop.folder / "a.zip").write_bytes(b"PK\x03\x04\xff")
    threads = user.get("/v1/threads")

    done = arkloop("run", "Look", "--file", "a.txt", "--file", "a.zip")
    missing = arkloop("run", "Look", "--file", "nowhere.png")

    assert (1, 2) == (done.returncode, missing.returncode)
    assert b"must be a PNG, JPEG, GIF or WebP image, a PDF, or text in UTF-8" in done.stderr
    assert threads == user.get("/v1/threads")


def test_json_lines_are_the_events_byte_for_byte(arkloop: Arkloop, user: Caller) -> None:
    """`--json` prints what the API has stored, one event a line, and nothing else."""
    tool = {"tool": "calculator", "args": {"expression": "6*7"}}

    done = arkloop("run", "--json", script({"say": "é \u2028 x "}, tool, {"say": "done"}))

    assert 0 == done.returncode
    frames = user.raw(run_of(done.stderr)).split(b"\n")
    stored = [line.removeprefix(b"data: ") for line in frames if line.startswith(b"data: ")]
    assert stored == done.stdout.removesuffix(b"\n").split(b"\n")


def test_a_failed_run_exits_with_1_and_says_why(arkloop: Arkloop) -> None:
    """The error's code and message are on standard error."""
    done = arkloop("run", script({"say": "half "}, {"error": "invalid_request"}))

    assert 1 == done.returncode
    assert b"The script says: invalid_request. (provider.invalid_request)" in done.stderr


def test_options_become_fields_of_the_run(arkloop: Arkloop, user: Caller, tmp_path: Path) -> None:
    """Standard output has the output alone, without the answer that did not fit."""
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}}')
    options = (
        *("--instructions", "Be brief.", "--setting", "temperature=0.5"),
        *("--setting", "reasoning_effort=low", "--metadata", "team=red", "--schema", str(schema)),
    )

    done = arkloop("run", *options, script({"output": {"a": 1}, "invalid": 1}))

    assert (0, {"a": 1}) == (done.returncode, json.loads(done.stdout))
    assert "The output does not fit: " in done.stderr.decode()
    run = user.get_run(run_of(done.stderr))
    assert {"team": "red"} == run["metadata"]
    assert run["overrides"] == {
        "instructions": "Be brief.",
        "model_settings": {"temperature": 0.5, "reasoning_effort": "low"},
        "output_schema": json.loads(schema.read_text()),
    }


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--var", "name"), "--var must have the form name=value"),
        (("--metadata", "=x"), "--metadata must have the form name=value"),
        (("--setting", "a=1", "--setting", "a=2"), "--setting is given twice for 'a'"),
        (("--schema", __file__), "--schema: "),
    ],
)
def test_options_that_cannot_be_read_are_wrong_usage(
    arkloop: Arkloop, options: tuple[str, ...], why: str
) -> None:
    """Status 2, before anything is sent."""
    done = arkloop("run", *options, "Hi")

    assert (2, b"") == (done.returncode, done.stdout)
    assert why in done.stderr.decode()


def test_text_of_a_model_call_that_was_made_again_is_not_in_the_pipe(arkloop: Arkloop) -> None:
    """After `message.reset` the void text is nowhere on standard output."""
    done = arkloop("run", script({"say": "first "}, {"error": "disconnect"}, {"say": "last"}))

    assert (0, b"first last\n") == (done.returncode, done.stdout)
    assert b"Discard the unfinished text above (provider.connection)" in done.stderr


def test_the_next_line_of_a_pipe_answers_a_question(arkloop: Arkloop, user: Caller) -> None:
    """Empty lines are skipped; the number of an option stands for the option."""
    done = arkloop("run", script(ASK, ASK, {"say": "done"}), input=b"\n2\ngreen\n")

    assert (0, b"done\n") == (done.returncode, done.stdout)
    events = user.events(run_of(done.stderr))
    answers = [e["data"]["content"] for e in events if e["type"] == "run.input_received"]
    assert ["blue", "green"] == answers


def test_a_question_that_nobody_can_answer_leaves_the_run_waiting(
    arkloop: Arkloop, user: Caller
) -> None:
    """Without input the command exits with status 1 and the command to answer with, which then
    works.
    """
    done = arkloop("run", script(ASK, {"say": "done"}))
    run_id = run_of(done.stderr)

    assert 1 == done.returncode
    assert f"arkloop runs input {run_id} ANSWER" in done.stderr.decode()
    assert "waiting_for_input" == user.get_run(run_id)["status"]
    request_id = user.get_run(run_id)["pending_input"]["request_id"]
    arkloop.stdout("runs", "input", run_id, "red", "--request-id", request_id)
    assert "completed" == user.ended(run_id)["status"]


# ---- at a terminal -------------------------------------------------------------------


def test_a_call_that_waits_for_a_client_gets_its_result(arkloop: Arkloop, user: Caller) -> None:
    """`run` shows the call and follows the run; `runs result` sends what the model reads."""
    tool = {"name": "locate", "description": "Where?", "client": True}
    persona = {"key": "locating", "client_tools": [{**tool, "parameters": {"type": "object"}}]}
    user.made("/v1/personas", persona)
    said = script({"tool": "locate", "args": {}}, {"say": "There."})
    with arkloop.started("run", "--persona", "locating", said) as process:
        run_id = run_of(first_line(process))
        user.until(run_id, "status", "waiting_for_input")
        assert "ok\n" == arkloop.stdout("runs", "result", run_id, "call_1_1", "Rome")
        stdout, stderr = process.communicate(timeout=30)

    assert (0, b"There.\n") == (process.returncode, stdout)
    assert f"arkloop runs result {run_id} CALL_ID OUTPUT".encode() in stderr
    assert b"call_1_1  locate" in stderr


def test_at_a_terminal_arguments_appear_while_the_model_writes_them(
    arkloop: Arkloop, user: Caller
) -> None:
    """Of a persona that streams them; the call is not shown a second time."""
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
    with arkloop.at_terminal("run", script({"say": "wait "}, {"hang": 1}, ASK)) as terminal:
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
        assert re.search(f"first \n{re.escape(void)}.*\nfirst last\ncompleted", terminal.screen)


def test_a_model_cannot_steer_the_terminal(arkloop: Arkloop) -> None:
    """Escape sequences and markup in what a model says are shown, not obeyed, in a pipe too."""
    said = script({"say": "a\x1b]0;title\x07b[red]c"})
    with arkloop.at_terminal("run", said) as terminal:
        assert 0 == terminal.ended()
        assert "a\ufffd]0;title\ufffdb[red]c" in terminal.screen
    assert "a\ufffd]0;title\ufffdb[red]c\n" == arkloop.stdout("run", said)
    assert '"content":"a\\u001b]0;title\\u0007b[red]c"' in arkloop.stdout("run", "--json", said)


# ---- Ctrl-C --------------------------------------------------------------------------


def test_ctrl_c_cancels_the_run(arkloop: Arkloop, user: Caller) -> None:
    """The run ends as cancelled, its text so far is printed, the exit status is 130."""
    with arkloop.started("run", script({"say": "so far "}, HANG)) as process:
        run_id = run_of(first_line(process))
        user.seen(run_id, "message.delta")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)

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

        assert 130 == terminal.process.wait(5)


# ---- broken connections --------------------------------------------------------------


def test_cut_connections_lose_and_repeat_nothing(
    arkloop: Arkloop, user: Caller, relay: Relay
) -> None:
    """A stream that ends after every 700 bytes, inside a frame or not, prints each event once."""
    relay.cut_after = 700
    # Text alone may come in few events, where the worker has to wait for its turn.
    calls = [{"tool": "calculator", "args": {"expression": f"{i}+1"}} for i in range(10)]
    steps = script(*calls, {"say": "x y z ", "repeat": 40, "delay_ms": 5}, {"say": "end"})

    done = arkloop.with_(ARKLOOP_URL=relay.url)("run", "--json", steps)

    assert 0 == done.returncode, done.stderr.decode()
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert user.events(run_of(done.stderr)) == events
    assert relay.cuts > 2


def test_an_answer_survives_a_restart_of_the_server(
    arkloop: Arkloop, user: Caller, relay: Relay
) -> None:
    """What was typed while the connections were broken arrives, once."""
    environ = arkloop.with_(ARKLOOP_URL=relay.url)
    with environ.at_terminal("run", script(ASK, {"say": "done"})) as terminal:
        terminal.until("number of one:")
        relay.cut()
        terminal.type("red")

        assert 0 == terminal.ended()
        assert 1 == types(user.events(run_of(terminal.screen))).count("run.input_received")


# ---- threads -------------------------------------------------------------------------


def test_a_thread_is_gone_on_with(arkloop: Arkloop, user: Caller) -> None:
    """`--thread` adds to a conversation."""
    thread_id = user.thread()

    assert "You said: one\n" == arkloop.stdout("run", "--thread", thread_id, "one")
    assert "You said: two\n" == arkloop.stdout("run", "--thread", thread_id, "two")
    said = [content for _role, content, _partial in user.messages(thread_id)]
    assert ["one", "You said: one", "two", "You said: two"] == said


def test_a_busy_thread_does_not_get_the_message(arkloop: Arkloop, user: Caller) -> None:
    """The active run is named; another try later finds the thread as it was."""
    thread_id = user.thread(script(HANG))
    run_id = user.start(thread_id)

    done = arkloop("run", "--thread", thread_id, "more")

    assert 1 == done.returncode
    assert f"arkloop runs cancel {run_id}" in done.stderr.decode()
    assert 1 == len(user.messages(thread_id))
    user.cancel(run_id)


def test_a_run_that_is_refused_leaves_no_thread_behind(system: System, arkloop: Arkloop) -> None:
    """A typo in `--route` is reported, and nothing remains of it."""
    newcomer = system.caller()

    done = arkloop.with_(ARKLOOP_API_KEY=newcomer.token)("run", "--route", "typo", "hello")

    assert 1 == done.returncode
    assert b"routes.not_found" in done.stderr
    assert [] == newcomer.get("/v1/threads")


def test_a_run_that_nobody_begins_says_why(system: System, arkloop: Arkloop) -> None:
    """After three seconds in the queue; the run starts by itself when a worker does."""
    with ExitStack() as stack:
        with system.without_worker():
            process = stack.enter_context(arkloop.started("run", "Good morning"))
            told = [first_line(process), first_line(process)]
        out, _ = process.communicate(timeout=60)

    assert any("No worker is running" in line for line in told), told
    assert (0, b"You said: Good morning\n") == (process.returncode, out)
