"""The commands that talk to a server or to the database and end at once."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text

from arkloop.cli.client.server_address import find_server
from arkloop.cli.main import ENTRIES, main
from arkloop.shared import actors
from arkloop.shared.storage import schema
from tests.caller import Caller, client, script
from tests.cli.client.relay import Relay
from tests.cli.command import Arkloop
from tests.closed_port import closed_port
from tests.system import System

pytestmark = pytest.mark.processes

ABSENT = "01a20e69-febb-7726-9958-e5d91f244720"


# ---- the command itself --------------------------------------------------------------


@pytest.mark.parametrize("name", ENTRIES)
def test_every_command_that_help_lists_is_there(name: str) -> None:
    """The table of lazy commands names modules and functions that exist."""
    assert name == main.get_command(click.Context(main), name).name


@pytest.mark.parametrize("names", ["run", "runs", "keys list"])
def test_client_commands_load_nothing_of_the_server(names: str) -> None:
    """Their start-up stays short: no SQLAlchemy, Celery, Flask, gevent, Redis or supervisor."""
    heavy = "{'sqlalchemy', 'celery', 'flask', 'gevent', 'gunicorn', 'redis', 'openai'}"
    code = (
        "import sys; from arkloop.cli.main import main;"
        f"main({[*names.split(), '--help']}, standalone_mode=False);"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ---- which server --------------------------------------------------------------------


def test_without_a_key_the_command_says_where_to_get_one(arkloop: Arkloop) -> None:
    """It prints one line with what to do, exits with status 1, and shows no traceback."""
    done = arkloop.with_(ARKLOOP_API_KEY="")("run", "hello")

    assert (1, b"") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines())
    assert b"set ARKLOOP_API_KEY, or start `arkloop dev`" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:abc", "http://127.0.0.1:99999", "http://[::1"),
        *("http://foo..bar", "http://münchen..de"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """The message has the address, where a library would raise an error of its own."""
    with pytest.raises(click.ClickException, match=f"is {re.escape(repr(url))}"):
        find_server({"ARKLOOP_URL": url, "ARKLOOP_API_KEY": "key"})


def test_an_unreachable_server_is_told_in_one_line(arkloop: Arkloop) -> None:
    """The address, the reason and what to do; status 1, no traceback, no long wait."""
    url = f"http://127.0.0.1:{closed_port()}"

    done = arkloop.with_(ARKLOOP_URL=url)("run", "hello")

    assert (1, b"") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines())
    assert f"{url} is unreachable" in done.stderr.decode()
    assert b"arkloop dev" in done.stderr


def test_a_wrong_key_is_told(arkloop: Arkloop) -> None:
    """The server's own words, and which setting to look at."""
    done = arkloop.with_(ARKLOOP_API_KEY="al_wrong")("runs", "list")

    assert 1 == done.returncode
    assert b"Check ARKLOOP_API_KEY. (401 auth.unauthorized)" in done.stderr


def test_the_dev_server_is_found_by_its_folder(arkloop: Arkloop, user: Caller) -> None:
    """The folder where `arkloop dev` was started needs no setting; ARKLOOP_DATA moves it."""
    for folder in (".arkloop", "elsewhere"):
        data = arkloop.folder / folder
        data.mkdir()
        (data / "url").write_text(f"{user.url}\n")
        (data / "api-key").write_text(f"{user.token}\n")
    bare = arkloop.with_(ARKLOOP_URL="", ARKLOOP_API_KEY="")

    assert "[]\n" == bare.stdout("runs", "list", "--status", "failed", "--json")
    (arkloop.folder / ".arkloop" / "api-key").unlink()
    moved = bare.with_(ARKLOOP_DATA="elsewhere")
    assert "[]\n" == moved.stdout("runs", "list", "--status", "failed", "--json")


def test_the_key_of_the_dev_server_is_not_sent_to_another_machine(tmp_path: Path) -> None:
    """A key from the folder is for loopback; elsewhere ARKLOOP_API_KEY must be set."""
    (tmp_path / "api-key").write_text("al_secret\n")
    here = {"ARKLOOP_DATA": str(tmp_path), "ARKLOOP_URL": "http://localhost:1/"}

    assert ("http://localhost:1", "al_secret") == find_server(here)
    with pytest.raises(click.ClickException, match="set ARKLOOP_API_KEY"):
        find_server({**here, "ARKLOOP_URL": "http://localhost.example.com"})


@pytest.mark.parametrize("url", ["https://attacker.example", "http://127.0.0.1:9"])
def test_the_environments_key_is_not_sent_where_a_folder_says(tmp_path: Path, url: str) -> None:
    """A repository with a `.arkloop/url` of its own must not get the key of its user."""
    (tmp_path / "url").write_text(f"{url}\n")
    environ = {"ARKLOOP_DATA": str(tmp_path), "ARKLOOP_API_KEY": "al_secret"}

    with pytest.raises(click.ClickException, match="set ARKLOOP_URL, or unset ARKLOOP_API_KEY"):
        find_server(environ)
    chosen = {**environ, "ARKLOOP_URL": "https://ours.example"}
    assert ("https://ours.example", "al_secret") == find_server(chosen)
    (tmp_path / "url").unlink()
    assert ("http://127.0.0.1:8080", "al_secret") == find_server(environ)


def test_a_folder_names_a_server_on_this_machine_alone(tmp_path: Path) -> None:
    """Its own key is not sent to another one either, and the message says what to set."""
    (tmp_path / "url").write_text("https://attacker.example\n")
    (tmp_path / "api-key").write_text("al_secret\n")

    with pytest.raises(click.ClickException, match="set ARKLOOP_URL and ARKLOOP_API_KEY"):
        find_server({"ARKLOOP_DATA": str(tmp_path)})


# ---- runs ----------------------------------------------------------------------------


def test_runs_are_listed_newest_first(arkloop: Arkloop, system: System) -> None:
    """A pipe gets them tab-separated, by status and by thread, at most `--limit` of them."""
    caller = system.caller()
    command = arkloop.with_(ARKLOOP_API_KEY=caller.token)
    thread_id = caller.thread("hello")
    made = [caller.run(script({"error": "invalid_request"})), caller.start(thread_id)]
    ended = [caller.ended(run_id) for run_id in made]

    lines = [line.split("\t") for line in command.stdout("runs", "list").splitlines()]
    assert [[made[1], "completed"], [made[0], "failed"]] == [line[:2] for line in lines]
    assert [ended[1]["created_at"], "scripted-1", "assistant@1"] == [lines[0][i] for i in (2, 7, 8)]
    assert made[1] == command.stdout("runs", "list", "--limit", "1").split("\t")[0]
    assert made[0] == command.stdout("runs", "list", "--status", "failed").split("\t")[0]
    in_thread = ("runs", "list", "--thread", thread_id)
    assert f"{made[1]}\tcompleted\t{ended[1]['created_at']}\n" == command.stdout(*in_thread)
    assert "" == command.stdout(*in_thread, "--status", "failed")
    as_json = json.loads(command.stdout("runs", "list", "--json"))
    assert caller.get("/v1/runs") == as_json


def test_a_list_is_read_over_its_pages(arkloop: Arkloop, user: Caller) -> None:
    """A filter on this side finds what is on a later page of the server."""
    thread_id = user.thread(script({"error": "invalid_request"}))
    failed = user.start(thread_id)
    user.ended(failed)
    user.say(thread_id, "hello")
    user.ended(user.start(thread_id))

    found = arkloop.stdout(
        *("runs", "list", "--thread", thread_id), *("--status", "failed", "--limit", "1")
    )

    assert failed == found.split("\t")[0]


def test_a_list_at_a_terminal_has_a_header_and_whole_ids(arkloop: Arkloop, user: Caller) -> None:
    """Lines are cut to the screen, but never inside the id."""
    run_id = user.run("hello")
    user.ended(run_id)

    with arkloop.at_terminal("runs", "list", "--limit", "1") as terminal:
        assert 0 == terminal.ended()
        header, row = terminal.screen.splitlines()

    assert header.startswith("run_id ")
    assert row.startswith(f"{run_id}  completed  ")
    assert 80 >= max(len(header), len(row))


def test_a_run_is_shown_field_by_field(arkloop: Arkloop, user: Caller) -> None:
    """Every field that the API has, one a line or as JSON."""
    run_id = user.run("hello")
    run = user.ended(run_id)

    lines = [line.split("\t") for line in arkloop.stdout("runs", "show", run_id).splitlines()]

    assert list(run) == [name for name, _value in lines]
    assert run["trace_id"] == dict(lines)["trace_id"]
    assert run == json.loads(arkloop.stdout("runs", "show", run_id, "--json"))


def test_a_run_that_is_not_there_is_told(arkloop: Arkloop) -> None:
    """Each command that names a run prints one line and exits with status 1."""
    for command in (
        ["show", ABSENT],
        ["cancel", ABSENT],
        ["events", ABSENT],
        ["input", ABSENT, "x"],
    ):
        done = arkloop("runs", *command)
        assert (1, b"Error: Run not found. (404 runs.not_found)\n") == (
            done.returncode,
            done.stderr,
        )


def test_a_run_is_cancelled(arkloop: Arkloop, user: Caller) -> None:
    """Cancelling a run again gets the same response."""
    run_id = user.run({"hang": 60})

    assert ["ok\n", "ok\n"] == [arkloop.stdout("runs", "cancel", run_id) for _ in range(2)]
    assert "cancelled" == user.ended(run_id)["status"]


def test_events_are_printed_from_any_number_on(arkloop: Arkloop, user: Caller) -> None:
    """People get lines, scripts get tab-separated fields, and `--json` gives the API's bytes."""
    run_id = user.run("hello")
    events = user.events(run_id)

    printed = arkloop.stdout("runs", "events", run_id, "--json", "--after-seq", "2")
    assert events[2:] == [json.loads(line) for line in printed.splitlines()]
    fields = [line.split("\t") for line in arkloop.stdout("runs", "events", run_id).splitlines()]
    assert [[str(e["seq"]), e["type"], e["created_at"]] for e in events] == [f[:3] for f in fields]
    assert [e["data"] for e in events] == [json.loads(f[3]) for f in fields]
    assert "" == arkloop.stdout("runs", "events", run_id, "--after-seq", "99")


def test_events_of_a_live_run_are_followed_or_not(arkloop: Arkloop, user: Caller) -> None:
    """`--no-follow` ends with what is there; without it the end of the run is waited for."""
    run_id = user.run({"say": "hello "}, {"hang": 60})
    user.seen(run_id, "message.delta")

    so_far = arkloop.stdout("runs", "events", run_id, "--no-follow", "--json").splitlines()
    assert "message.delta" == json.loads(so_far[-1])["type"]
    with arkloop.started("runs", "events", run_id, "--json") as process:
        assert process.stdout is not None
        followed = [process.stdout.readline() for _ in so_far]
        user.cancel(run_id)
        followed += process.stdout.readlines()
        assert 0 == process.wait(60)
    assert user.events(run_id) == [json.loads(line) for line in followed]


def test_events_that_are_not_waited_for_survive_a_cut(
    arkloop: Arkloop, user: Caller, relay: Relay
) -> None:
    """`--no-follow` resumes as without it, and ends with what is there."""
    run_id = user.run({"say": "hello "}, {"hang": 60})
    user.seen(run_id, "message.delta")
    relay.cut_after = 300

    done = arkloop.with_(ARKLOOP_URL=relay.url)("runs", "events", run_id, "--no-follow", "--json")

    assert 0 == done.returncode, done.stderr.decode()
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    user.cancel(run_id)
    assert user.events(run_id)[: len(printed)] == printed
    assert "message.delta" == printed[-1]["type"]
    assert relay.cuts


# ---- keys ----------------------------------------------------------------------------


def test_a_key_is_made_used_listed_and_revoked(arkloop: Arkloop, user: Caller) -> None:
    """A pipe gets the key alone, once, and it works until it is revoked."""
    made = arkloop.stdout("keys", "create", "for\tci", "--scope", "data.runs.read")
    key = made.removesuffix("\n")
    with_key = arkloop.with_(ARKLOOP_API_KEY=key)

    with_key.stdout("runs", "list")
    newest = arkloop.stdout("keys", "list", "--limit", "1").removesuffix("\n").split("\t")
    assert ["for ci", key[:9], '["data.runs.read"]'] == [newest[i] for i in (1, 2, 6)]
    assert key not in arkloop.stdout("keys", "list", "--json")
    assert "ok\n" == arkloop.stdout("keys", "revoke", newest[0])
    assert 401 == client(user.url, key).get("/v1/runs").status_code
    assert (
        b"403 auth.forbidden"
        in arkloop.with_(
            ARKLOOP_API_KEY=arkloop.stdout("keys", "create", "narrow", "--scope", "data.runs.read")
        )("run", "hello").stderr
    )


def test_a_key_without_scopes_may_what_its_creator_may(arkloop: Arkloop, user: Caller) -> None:
    """`keys create` without `--scope` makes a key with all scopes of the caller."""
    key = arkloop.stdout("keys", "create", "all").removesuffix("\n")

    mine = client(user.url, key).get("/v1/me").json()["permissions"]
    assert "admin" in mine


def test_the_help_of_keys_names_all_scopes(arkloop: Arkloop) -> None:
    """Workers and operators have scopes of their own."""
    shown = " ".join(arkloop.stdout("keys", "create", "--help").split())

    named = set(shown.partition("--scope TEXT ")[2].partition("; may be repeated")[0].split())
    assert actors.SCOPES | {actors.OPERATE, "or"} == {word.strip(",") for word in named}


def test_a_scope_that_does_not_exist_is_told(arkloop: Arkloop) -> None:
    """The field and what it may be, in the server's words."""
    done = arkloop("keys", "create", "wrong", "--scope", "everything")

    assert 1 == done.returncode
    assert b"422 validation.error" in done.stderr
    assert b"scopes" in done.stderr


# ---- migrate -------------------------------------------------------------------------


def migrate(url: str) -> Result:
    """Run `arkloop migrate`, which does not wait for the database."""
    return CliRunner().invoke(main, ["migrate", "--wait", "0"], env={"ARKLOOP_DATABASE_URL": url})


@pytest.mark.owner
def test_migrate_needs_the_database_alone_and_may_run_again(
    new_database: Callable[[], str],
) -> None:
    """`migrate` prints the version without any other setting, and changes nothing the second
    time.
    """
    url = new_database()
    engine = create_engine(url)
    with engine.begin() as sql:
        sql.execute(text("DROP SCHEMA public CASCADE"))
        sql.execute(text("CREATE SCHEMA public"))

    printed = [migrate(url).stdout for _ in range(2)]

    assert [f"{schema.needed_version()}\n"] * 2 == printed
    with engine.connect() as sql:
        assert schema.needed_version() == schema.current_version(sql)
    engine.dispose()


def test_migrate_leaves_a_newer_schema_alone(new_database: Callable[[], str]) -> None:
    """Older code that is deployed again after newer code starts as if nothing were to do."""
    url = new_database()
    engine = create_engine(url)
    with engine.begin() as sql:
        sql.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()

    assert "9999\n" == migrate(url).stdout


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "ARKLOOP_DATABASE_URL is required"),
        ("mysql://x", "must begin with postgresql://"),
        ("nonsense", "must begin with postgresql://"),
        (
            "postgresql://me:secret@127.0.0.1:1/x",
            "127.0.0.1:1/x (ARKLOOP_DATABASE_URL): conn",
        ),
    ],
)
def test_migrate_says_what_is_wrong_with_the_database(url: str, why: str) -> None:
    """A wrong database is reported in one line with status 1, without traceback and password."""
    done = migrate(url)

    assert (1, "") == (done.exit_code, done.stdout)
    assert isinstance(done.exception, SystemExit)
    assert why in done.stderr
    assert "secret" not in done.stderr
