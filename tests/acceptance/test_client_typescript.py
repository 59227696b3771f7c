"""`clients/typescript` in Node.js against the service: cut connections, killed servers, people."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance.streamed_runs import LONG
from tests.ai_sdk_chat import needs_front_ends
from tests.ai_sdk_pages import MODULES, NODE
from tests.caller import Caller, script
from tests.cutting_proxy import cutting_proxy
from tests.system import System
from tests.typescript_client import CLIENT, called, compiled, install

pytestmark = needs_front_ends

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "front_ends" / "client.mjs"
STEPS = (
    LONG,
    {"tool": "ask_user", "args": {"question": "Where?"}},
    {"tool": "get_location", "args": {}},
    {"say": "Almost "},
    {"error": "disconnect", "times": 1},
    {"say": "there."},
)
ASKING = script({"tool": "ask_user", "args": {"question": "Where?"}}, {"say": "Thanks."})
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
#: What the examples of the docs use: a token, a thread and a tool.
OF_THE_READER = """\
declare const token: string
declare const threadId: string
declare function locate(args: unknown): { city: string }
"""
TOOL = {
    "name": "get_location",
    "description": "Returns where the user is.",
    "client": True,
    "parameters": {"type": "object"},
}


def _started(
    url: str, user: Caller, options: dict[str, int] | None = None, **body: Any
) -> "subprocess.Popen[str]":
    given = {"url": url, "token": user.token, "body": {"route_id": "scripted", **body}}
    given |= options or {}
    return subprocess.Popen(
        [str(NODE), "--disable-warning=ExperimentalWarning", str(PROGRAM), json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _said(program: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = program.communicate(timeout=150)
    assert 0 == program.returncode, errors
    return dict(json.loads(output))


def test_cut_connections_lose_and_repeat_nothing(system: System, user: Caller) -> None:
    """Twenty cuts: one run, each event once, the text of its last turn; answers arrive as well."""
    with cutting_proxy(system.web[0].settings.port, cuts=20, longest=1500, seed=7) as proxy:
        said = _said(_started(proxy.url, user, message=script(*STEPS), tools=[TOOL]))
        assert proxy.cuts_left <= 0

    assert user.events(said["runId"]) == said["seen"]
    assert [said["runId"]] == [
        run["run_id"] for run in user.get(f"/v1/threads/{said['thread']}/runs")
    ]
    assert "run.completed" == said["seen"][-1]["type"]
    assert said["output"] == said["text"] != ""
    assert ([], "runs.not_found") == (said["rest"], said["code"])


def test_a_killed_server_loses_nothing(system: System, user: Caller) -> None:
    """The process that streams dies in the middle; the client continues with the next one."""
    steps = script({"count": 60, "delay_ms": 20}, {"say": "there."})
    with system.one_more_web_server() as server:
        program = _started(server.url, user, message=steps)
        assert program.stderr is not None
        assert "begun\n" == program.stderr.readline()
        for child in psutil.Process(server.pid).children():
            os.kill(child.pid, signal.SIGKILL)
        said = _said(program)

    assert user.events(said["runId"]) == said["seen"]


def test_a_stream_that_is_cut_behind_a_slow_caller_is_opened_again(
    system: System, user: Caller
) -> None:
    """The caller takes longer than the patience over an event, and the server dies meanwhile."""
    options = {"patience": 15_000, "holdMs": 17_000}
    with system.one_more_web_server() as server:
        program = _started(server.url, user, options, message=ASKING)
        assert program.stderr is not None
        assert ["begun\n", "waiting\n"] == [program.stderr.readline() for _ in range(2)]
        for child in psutil.Process(server.pid).children():
            os.kill(child.pid, signal.SIGKILL)
        said = _said(program)

    assert user.events(said["runId"]) == said["seen"]


def test_a_slow_caller_is_no_silence(user: Caller) -> None:
    """A stream stays open while its caller takes longer over an event than it may be silent."""
    options = {"holdMs": 11_000, "silenceMs": 10_000}
    said = _said(_started(user.url, user, options, message=ASKING))

    assert (1, "run.completed") == (said["opened"], said["seen"][-1]["type"])


def test_the_text_is_that_of_one_turn(user: Caller) -> None:
    """A turn that repairs its output begins anew, though no tool was called before it."""
    steps = script({"output": {"name": "Rome"}, "invalid": 1})
    said = _said(_started(user.url, user, message=steps, output_schema=CITY))

    turns = [event for event in said["seen"] if event["type"] == "message.completed"]
    assert (2, {"name": "Rome"}) == (len(turns), json.loads(said["streamed"]))


def test_an_approval_has_its_arguments(user: Caller) -> None:
    """A call is made with the arguments that `approve` has sent."""
    calling = script({"tool": "calculator", "args": {"expression": "6*7"}}, {"say": "Done."})
    said = _said(_started(user.url, user, message=calling, persona_id="careful"))

    results = [one["data"]["output"] for one in said["seen"] if one["type"] == "tool.result"]
    assert ["54"] == results


@pytest.mark.parametrize("call", ["get", "follow"])
def test_a_limit_that_no_waiting_lifts_is_thrown_at_once(call: str) -> None:
    """A 429 without `Retry-After`, such as that of a budget that is used up, is not repeated."""
    shown = {"code": "budget.exhausted", "message": "Nothing is left.", "details": {}}
    made = called(call, {"status": 429, "body": json.dumps(shown)})

    assert (1, "budget.exhausted", None) == (
        made["attempts"],
        made["thrown"]["code"],
        made["thrown"]["retryAfter"],
    )


@pytest.mark.parametrize(
    ("call", "last"),
    [("get", {"status": 200}), ("follow", {"status": 204, "body": None})],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for(call: str, last: dict[str, Any], status: int) -> None:
    """The next request follows after as many seconds as the service has named."""
    made = called(call, {"status": status, "headers": {"Retry-After": "1"}}, last)

    assert (2, None) == (made["attempts"], made["thrown"])
    assert 990 <= made["ms"]  # timers of Node.js may be up to a millisecond early


@pytest.mark.parametrize("status", [408, 502, 503, 504, 520, 524, 530])
def test_a_passing_failure_is_repeated_with_its_key(status: int) -> None:
    """A request before it, whose response was lost, may have been carried out."""
    made = called("create", {"status": status}, {"status": 201})

    assert (2, None) == (made["attempts"], made["thrown"])
    [key] = set(made["keys"])
    assert key


def test_a_retry_after_beyond_the_patience_is_thrown_at_once() -> None:
    """The error says how long the caller would have to wait."""
    made = called("get", {"status": 429, "headers": {"Retry-After": "6"}}, patience=5_000)

    assert (1, 6) == (made["attempts"], made["thrown"]["retryAfter"])


@pytest.mark.parametrize(
    ("call", "url"),
    [
        ("cyclic", "http://127.0.0.1:9"),
        ("key", "http://127.0.0.1:9"),
        ("get", "http://127.0.0.1:port"),
        ("follow", "http://127.0.0.1:port"),
        ("get", "localhost:8080"),
        ("follow", "localhost:8080"),
    ],
)
def test_a_request_that_cannot_be_made_is_thrown_at_once(call: str, url: str) -> None:
    """A body or header that cannot be written, or an address of no HTTP server, stays as it is."""
    made = called(call, url=url, patience=50_000)

    assert (0, "TypeError") == (made["attempts"], made["thrown"]["name"])
    assert made["ms"] < 40_000


def test_a_token_of_a_file_may_end_with_a_newline() -> None:
    """What surrounds the token, such as the end of the file's line, is left out."""
    assert ["Bearer secret"] == called("get", {"status": 200}, token=" secret\r\n")["tokens"]


@pytest.mark.parametrize("token", ["secret\nsecret", "secret\u200b", "secrét"])
def test_a_token_that_no_header_can_hold_is_refused_without_its_value(token: str) -> None:
    """The error is thrown where the client is made, and shows nothing of the token in logs."""
    made = called("get", {"status": 200}, token=token)

    assert (0, "TypeError") == (made["attempts"], made["thrown"]["name"])
    assert "characters other than visible ASCII" in made["thrown"]["message"]
    assert "secr" not in made["thrown"]["message"]


def test_no_event_follows_an_abort() -> None:
    """Events that have arrived together with the last one, and the run's end, are not yielded."""
    kinds = ("run.started", "message.delta", "run.completed")
    frames = [
        f"data: {json.dumps({'seq': i, 'type': kind})}\n\n" for i, kind in enumerate(kinds, 1)
    ]
    stream = {"headers": {"Content-Type": "text/event-stream"}, "body": "".join(frames)}
    made = called("abortAtFirst", {"status": 200, **stream})

    assert ([1], "aborted") == (made["seen"], made["thrown"]["reason"])


def test_an_abort_ends_a_pause() -> None:
    """The caller gets the signal's reason at once, and no timer keeps the program running."""
    begun = time.monotonic()
    made = called("abortSoon", {"status": 503}, patience=200_000, firstPause=60_000)

    assert (1, "aborted") == (made["attempts"], made["thrown"]["reason"])
    assert time.monotonic() - begun < 30  # the pause has at least that much


@pytest.mark.parametrize(
    ("status", "code", "details", "more"),
    [
        (422, "validation.error", {"field": ["é"]}, ' {"field":["é"]} (422 validation.error)'),
        (404, "runs.not_found", {}, " (404 runs.not_found)"),
        (404, "http.not_found", {}, " GET http://service/v1/runs/run (404 http.not_found)"),
    ],
)
def test_an_errors_message_says_what_is_wrong(
    status: int, code: str, details: dict[str, Any], more: str
) -> None:
    """A log has details, status and code, and of a wrong address what was asked for."""
    body = json.dumps({"code": code, "message": "No.", "details": details})
    made = called("get", {"status": status, "body": body})

    assert f"No.{more}" == made["thrown"]["message"]


@pytest.mark.parametrize("details", [[1], "text", 5, None])
def test_details_are_an_object(details: Any) -> None:
    """Details of another kind are left out, since programs look for their fields."""
    body = json.dumps({"code": "blocked", "message": "No.", "details": details})
    made = called("get", {"status": 403, "body": body})

    assert ({}, "No. (403 blocked)") == (made["thrown"]["details"], made["thrown"]["message"])


@pytest.mark.parametrize(
    ("body", "header", "trace_id"),
    [
        ({"code": "internal.error", "message": "No.", "trace_id": "4bf9"}, "a", "4bf9"),
        ({"code": "internal.error", "message": "No."}, "4bf9", "4bf9"),
        ({"code": "internal.error", "message": "No.", "trace_id": 5}, None, None),
        ({"code": "internal.error", "message": "No.", "trace_id": ""}, "4bf9", "4bf9"),
        ({"code": "internal.error", "message": "No."}, "", None),
        ({"error": "blocked"}, "4bf9", "4bf9"),
    ],
)
def test_an_error_has_its_trace(
    body: dict[str, Any], header: str | None, trace_id: str | None
) -> None:
    """The id that an operator finds in the logs is that of the body, else that of the header."""
    headers = {} if header is None else {"X-Trace-Id": header}
    made = called("get", {"status": 500, "headers": headers, "body": json.dumps(body)})

    trace = "" if trace_id is None else f", trace {trace_id}"
    text = f"No. (500 internal.error{trace})" if "code" in body else '{"error": "blocked"}'
    assert (trace_id, text) == (made["thrown"]["traceId"], made["thrown"]["message"])


@pytest.mark.parametrize("body", ['{"error": "blocked"}', '{"code": 403}', "null", "Forbidden"])
def test_an_error_of_a_proxy_has_its_text(body: str) -> None:
    """JSON of another shape than the service's has no code, and its text is the message."""
    made = called("get", {"status": 403, "body": body})

    assert ("", body) == (made["thrown"]["code"], made["thrown"]["message"])


@pytest.mark.parametrize(
    ("response", "what"),
    [
        ({"status": 403, "body": " \n"}, "403 without a text"),
        ({"status": 301, "headers": {"Location": "/x"}}, "301 and a redirect to /x"),
    ],
)
def test_an_error_without_a_text_says_what_it_is(response: dict[str, Any], what: str) -> None:
    """The message of an empty response, and of a redirect, is what came from where."""
    made = called("get", response)

    assert f"http://service/v1/runs/run responded with {what}." == made["thrown"]["message"]


@pytest.mark.parametrize(
    ("call", "what"), [("get", "200 and no JSON"), ("follow", "200 and no events")]
)
def test_a_success_that_is_not_the_services_is_thrown_at_once(call: str, what: str) -> None:
    """The message says where it came from, and has nothing of what it was."""
    page = {"headers": {"Content-Type": "text/html"}, "body": "<p>Log in"}
    made = called(call, {"status": 200, **page})

    path = "/v1/runs/run" + ("/events" if call == "follow" else "")
    message = f"http://service{path} responded with {what}: the response is not the service's."
    assert (1, "") == (made["attempts"], made["thrown"]["code"])
    assert f"{message} Check the address." == made["thrown"]["message"]


def test_pauses_that_have_grown_do_not_end_a_patience() -> None:
    """Each stream is contact and ends at once; the pauses grow beyond the patience."""
    stream = {"status": 200, "headers": {"Content-Type": "text/event-stream"}, "body": ": ok\n"}
    last = {"status": 204, "body": None}

    made = called("follow", *[stream] * 4, last, patience=200, firstPause=100)

    assert (5, None) == (made["attempts"], made["thrown"])
    assert made["ms"] >= 50 + 100 + 200 + 400


@pytest.mark.parametrize("step", [3_600_000, -3_600_000])
def test_a_step_of_the_clock_changes_no_patience(step: int) -> None:
    """An hour forward does not end the patience, and one back does not make it longer."""
    repeated = called("get", {"status": 503}, {"status": 200}, clockStep=step, patience=20_000)
    given_up = called("get", {"status": 503}, clockStep=step, patience=1_000)

    assert (2, None) == (repeated["attempts"], repeated["thrown"])
    assert given_up["ms"] < 50_000


def test_the_types_are_current(tmp_path: Path) -> None:
    """They are what `openapi-typescript` makes of the description, and the client fits them."""
    made = tmp_path / "types.ts"
    described = ROOT / ".cache" / "openapi.json"
    tools = MODULES / ".bin"
    environ = {**os.environ, "PATH": f"{NODE.parent}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "scripts/client_types.py", "--document"], cwd=ROOT, check=True)
    command = [str(tools / "openapi-typescript"), str(described), "-o", str(made)]
    options = ["--empty-objects-unknown", "--default-non-nullable=false"]
    subprocess.run([*command, *options], check=True, env=environ, capture_output=True)

    assert (CLIENT / "src" / "types.ts").read_text() == made.read_text()
    assert (0, "") == compiled(CLIENT, "--noEmit")


def test_the_examples_of_the_docs_compile(tmp_path: Path) -> None:
    """The examples of the guide and of the README fit the types of the built package."""
    examples = [
        example
        for text in (ROOT / "docs" / "how-to" / "client-libraries.md", CLIENT / "README.md")
        for example in re.findall(r"^```ts\n(.+?)^```", text.read_text(), re.DOTALL | re.MULTILINE)
    ]
    for number, example in enumerate(examples):
        (tmp_path / f"example_{number}.mts").write_text(OF_THE_READER + example)
    built = install(tmp_path)
    options = {"module": "NodeNext", "strict": True, "types": []}
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))

    assert 4 == len(examples)
    assert [(0, "")] * 2 == [built, compiled(tmp_path, "--noEmit")]
