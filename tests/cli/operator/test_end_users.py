"""`arkloop end-users`."""

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from arkloop.cli.operator.end_users import end_users
from arkloop.shared.accounts import erasure
from arkloop.shared.config import Settings
from tests.clients import User
from tests.end_users import end_user

Run = Callable[..., Result]


@pytest.fixture
def run(settings: Settings) -> Run:
    """Call it with the words after `arkloop end-users`."""

    def run(*words: str, **kwargs: object) -> Result:
        env = {"ARKLOOP_DATABASE_URL": settings.database_url}
        return CliRunner().invoke(end_users, words, env=env, **kwargs)

    return run


def test_an_end_user_is_exported_and_erased(run: Run, alice: User) -> None:
    """Lines of JSON, then a question, then the record."""
    org = ("--org", str(alice.org_id))
    ann = end_user(alice)
    ann.say(ann.thread(title="A\u2028chat"))
    lines = [json.loads(line) for line in run("export", *org, "ann").output.split("\n")[:-1]]
    assert ["thread", "message"] == [line["type"] for line in lines]
    assert "A\u2028chat" == lines[0]["title"]

    assert 1 == run("erase", *org, "ann", input="n\n").exit_code
    assert 1 == len(alice.get("/v1/threads").json)
    record = json.loads(run("erase", *org, "--yes", "ann").output)

    assert ("end_user", 1, 1) == (record["kind"], record["threads"], record["messages"])
    assert [] == alice.get("/v1/threads").json
    assert "" == run("export", *org, "ann").output


def test_runs_that_do_not_end_stop_an_erasure(
    run: Run, alice: User, make_run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1, with the org, whose copy may have been broken off, and with what to do."""
    monkeypatch.setattr(erasure, "RUNS_END_SECONDS", 0)
    make_run(alice, end_user(alice).thread(), end_user_id="ann")

    refused = run("erase", "--org", str(alice.org_id), "--yes", "ann")

    assert 1 == refused.exit_code
    assert f"Their organizations: {alice.org_id}. Repeat the command." in refused.output


def test_an_unknown_org_is_said(run: Run) -> None:
    """Nothing is asked."""
    refused = run("erase", "--org", "nobody", "ann")

    assert (1, True) == (refused.exit_code, "'nobody'" in refused.output)
