"""`arkloop run`, as people and scripts meet it: the real command against a running system."""

import json
import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.acceptance.test_files import shown
from tests.caller import Caller, script, types
from tests.cli.client.followed_runs import ASK, HANG, first_line, run_of
from tests.cli.client.relay import Relay
from tests.cli.command import Arkloop
from tests.contents import png
from tests.system import System

pytestmark = pytest.mark.processes


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


def test_a_name_that_is_not_utf_8_is_sent_with_replacements(arkloop: Arkloop) -> None:
    """Disks and archives from elsewhere have names in Latin-1."""
    name = os.fsdecode(b"caf\xe9.txt")
    (arkloop.folder / name).write_text("at noon")

    done = arkloop("run", "Look", "--file", name)

    expected = 'You said: Look\n<file name="caf\ufffd.txt">\nat noon\n</file>\n'
    assert (0, expected) == (done.returncode, done.stdout.decode()), done.stderr


def test_a_file_that_is_refused_leaves_nothing(arkloop: Arkloop, user: Caller) -> None:
    """The server's reason is printed, no thread was created, and files sent before are gone."""
    (arkloop.folder / "a.txt").write_text("fine")
    (arkloop.folder / "a.zip").write_bytes(b"PK\x03\x04\xff")
    threads = user.get("/v1/threads")

    done = arkloop("run", "Look", "--file", "a.txt", "--file", "a.zip")
    missing = arkloop("run", "Look", "--file", "nowhere.png")
    os.mkfifo(arkloop.folder / "pipe")
    pipe = arkloop("run", "Look", "--file", "pipe")

    assert (1, 2, 2) == (done.returncode, missing.returncode, pipe.returncode)
    assert b"pipe is not a regular file" in pipe.stderr
    assert b"must be a PNG, JPEG, GIF or WebP image, a PDF, or text in UTF-8" in done.stderr
    assert threads == user.get("/v1/threads")


def test_a_file_that_shrinks_leaves_nothing(system: System, arkloop: Arkloop) -> None:
    """Files sent before are gone; those of sysfs have less to read than their size says."""
    newcomer = system.caller()
    (arkloop.folder / "a.txt").write_text("fine")
    shrinking = "/sys/class/net/lo/mtu"

    words = ("run", "Look", "--file", "a.txt", "--file", shrinking)
    done = arkloop.with_(ARKLOOP_API_KEY=newcomer.token)(*words)

    error = f"Error: {shrinking} became shorter while it was sent.\n"
    assert (1, error) == (done.returncode, done.stderr.decode())
    of_org = text("SELECT id FROM files WHERE org_id = :org_id AND stored_at IS NOT NULL")
    with system.connections.reading() as sql:
        ids = sql.scalars(of_org, {"org_id": newcomer.org_id}).all()
    assert {newcomer.http.get(f"/v1/files/{id_}").status_code for id_ in ids} <= {404}


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
        stdout, stderr = process.communicate(timeout=60)

    assert (0, b"There.\n") == (process.returncode, stdout)
    assert f"arkloop runs result {run_id} CALL_ID OUTPUT".encode() in stderr
    assert b"call_1_1  locate" in stderr


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


def test_a_message_that_the_active_run_takes_is_followed_there(
    arkloop: Arkloop, user: Caller
) -> None:
    """What follows it is shown, and nothing before; Ctrl-C leaves the run of the others alone."""
    thread_id = user.thread(on_busy="steer")
    tool = {"tool": "calculator", "args": {"expression": "1+1"}}
    steps = script({"say": "one "}, ASK, {"hang": 20}, tool, {"say": "all done"})
    run_id = user.start(thread_id, message=steps)
    user.until(run_id, "status", "waiting_for_input")
    user.answer(run_id, "red")
    user.until(run_id, "phase", "executing")

    with arkloop.started("run", "--thread", thread_id, "two") as left:
        assert run_id in first_line(left)
        assert "active run gets the message" in first_line(left)
        left.send_signal(signal.SIGINT)
        _, stderr = left.communicate(timeout=60)
    done = arkloop("run", "--thread", thread_id, "three")

    assert (130, True) == (left.returncode, f"{run_id} continues".encode() in stderr)
    assert "completed" == user.get_run(run_id)["status"]
    assert (0, b"You said: three\n") == (done.returncode, done.stdout)
    assert b"Which one?" not in stderr + done.stderr


def test_a_message_that_comes_too_late_has_a_run_of_its_own(arkloop: Arkloop, user: Caller) -> None:
    """The active run ends without it; what follows is its own answer, to which questions belong."""
    thread_id = user.thread(on_busy="steer")
    run_id = user.start(thread_id, message=script({"say": "one "}, {"hang": 20}, {"say": "end"}))
    user.seen(run_id, "message.delta")

    message = script(ASK, ASK, {"say": "two"})
    done = arkloop("run", "--thread", thread_id, message, input=b"red\nblue\n")

    assert (0, b"two\n") == (done.returncode, done.stdout)
    assert b"ended without the message" in done.stderr


def test_a_run_that_waits_for_its_thread_says_so(arkloop: Arkloop, user: Caller) -> None:
    """After three seconds in the queue; workers are not the reason."""
    thread_id = user.thread(on_busy="enqueue")
    first = user.start(thread_id, message=script(ASK, {"say": "done"}))

    with arkloop.started("run", "--thread", thread_id, "two") as process:
        told = [first_line(process), first_line(process)]
        user.until(first, "status", "waiting_for_input")
        assert 200 == user.answer(first, "red").status_code
        out, _ = process.communicate(timeout=60)

    assert f"behind run {first}" in told[1]
    assert (0, b"You said: two\n") == (process.returncode, out)


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
        out, _ = process.communicate(timeout=200)  # a worker starts, and takes its time

    assert any("No worker is running" in line for line in told), told
    assert (0, b"You said: Good morning\n") == (process.returncode, out)
