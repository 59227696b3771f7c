"""The output of the command line cannot steer a terminal, whatever its source."""

import ast
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import text

from arkloop.cli.output import escaped, printable
from arkloop.shared.storage.connections import Connections
from tests.cli.command import Arkloop
from tests.clients import User

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
#: Sets the title of a window in two ways, the second with one character of C1; turns the writing
#: direction around; overwrites the line.
HOSTILE = "a\x1b]0;title\x07b\x9d0;title\x9cc\u202ed\u2066e\x7ff\rg\x08h"
STEERING = set(HOSTILE) - set("a]0;titlebcdefgh")
RUN_ID = "01a20e5a-2b91-76ef-b381-d919c4ad9778"


@pytest.mark.parametrize("number", [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x061C])
def test_a_control_character_is_printed_neither_as_text_nor_as_json(number: int) -> None:
    """Text keeps only tabs and newlines of the control characters; JSON escapes them and keeps its
    value.
    """
    character = chr(number)
    document = json.dumps({"a": character}, ensure_ascii=False)

    assert (character in printable(f"a{character}b")) == (character in "\t\n")
    assert character not in escaped(document)
    assert json.loads(document) == json.loads(escaped(document))


def test_a_lone_surrogate_can_be_printed() -> None:
    """It has no encoding, and would end the command with a traceback."""
    assert "a\ufffdb" == printable("a\ud800b")
    assert '"\\ud800"' == escaped('"\ud800"')


def test_other_writing_is_printed_as_it_is() -> None:
    """Letters of any script, emoji and combining marks are no control characters."""
    said = "naïve Ωμέγα עברית 日本語 👩‍🚀 e\u0301\n\tend"

    assert (said, said) == (printable(said), escaped(said))


class HostileServer(BaseHTTPRequestHandler):
    """Answers everything with strings that try to steer a terminal."""

    def do_GET(self) -> None:
        if self.path.endswith("events?after_seq=0&follow=false"):
            event = {"seq": 1, "type": HOSTILE, "data": {"content": HOSTILE}}
            sent = json.dumps({**event, "created_at": HOSTILE}, ensure_ascii=False)
            # A carriage return would end the line of the stream.
            self._answer(200, "text/event-stream", f"data: {sent}\nid: 1\n\n")
        elif self.path.startswith("/v1/runs?") or self.path.startswith("/v1/api-keys"):
            names = ("run_id", "id", "name", "status", "model", "persona_id", "created_at")
            self._answer(200, "application/json", json.dumps([dict.fromkeys(names, HOSTILE)]))
        else:
            self._answer(200, "application/json", json.dumps({"status": HOSTILE, "error": HOSTILE}))

    def do_POST(self) -> None:
        error = {"code": HOSTILE, "message": HOSTILE, "details": {HOSTILE: HOSTILE}}
        self._answer(409, "application/json", json.dumps(error, ensure_ascii=False))

    def _answer(self, status: int, content_type: str, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def strings_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for part in parts for found in strings_in(part)]


@pytest.fixture
def arkloop(tmp_path: Path) -> Iterator[Arkloop]:
    """The command, talking to a hostile server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), HostileServer) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield Arkloop(tmp_path, {"ARKLOOP_URL": url, "ARKLOOP_API_KEY": "al_x"})
        server.shutdown()


@pytest.mark.parametrize(
    "args",
    [
        ("runs", "list"),
        ("runs", "list", "--json"),
        ("runs", "show", RUN_ID),
        ("runs", "show", RUN_ID, "--json"),
        ("runs", "events", RUN_ID, "--no-follow"),
        ("runs", "events", RUN_ID, "--no-follow", "--json"),
        ("runs", "cancel", RUN_ID),
        ("runs", "input", RUN_ID, "yes"),
        ("keys", "list"),
        ("keys", "list", "--json"),
        ("keys", "create", "name"),
        ("run", "Hello"),
    ],
    ids=" ".join,
)
def test_no_command_lets_a_server_steer_the_terminal(
    arkloop: Arkloop, args: tuple[str, ...]
) -> None:
    """Lists, records, events and error messages, at a terminal and in a pipe, also as JSON."""
    piped = arkloop(*args)
    with arkloop.at_terminal(*args) as terminal:
        terminal.ended()

    printed = piped.stdout.decode() + piped.stderr.decode() + terminal.screen
    assert "title" in printed
    assert set() == STEERING & set(printed)
    if "--json" in args:
        assert HOSTILE in strings_in(json.loads(piped.stdout)), "the values stay what they are"


def test_users_are_listed_without_control_characters(
    connections: Connections, alice: User, tmp_path: Path
) -> None:
    """Emails that were stored before they were checked are printed safely, too."""
    with connections.transaction() as tx:
        tx.sql.execute(
            text("UPDATE users SET email = :email WHERE id = :id"),
            {"email": "a\x1b]0;title\x07@\x9bexample.com", "id": alice.id},
        )
    arkloop = Arkloop(tmp_path, {"ARKLOOP_DATABASE_URL": connections.settings.database_url})

    plain, as_json = (arkloop.stdout("users", "list", *more) for more in ((), ("--json",)))

    assert set() == STEERING & set(plain + as_json)
    assert "a\x1b]0;title\x07@\x9bexample.com" in [user["email"] for user in json.loads(as_json)]


def test_only_one_module_prints() -> None:
    """A command that called `click.echo` or `print` itself would print whatever it was given.

    The supervisor of `arkloop dev` prints lines of its own, of which none quotes a user.
    """
    supervising = {"dev.py", "guard.py", "die_with_parent.py", "local_model.py"}
    printing = {"click.echo", "click.secho", "print", "json.dump"}
    printing |= {"sys.stdout.write", "sys.stdout.buffer.write", "sys.stderr.write"}
    found = [
        f"{module.name}:{call.lineno} {ast.unparse(call.func)}"
        for module in sorted((ROOT / "cli").glob("*.py"))
        if module.name not in {"output.py", *supervising}
        for call in ast.walk(ast.parse(module.read_text()))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in printing
        and ast.unparse(call) != "click.echo(err=True)"
    ]

    assert [] == found
