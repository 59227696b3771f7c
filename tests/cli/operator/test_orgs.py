"""`arkloop orgs`."""

import json
from collections.abc import Callable
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from arkloop.cli.operator.orgs import orgs
from arkloop.shared.accounts import accounts, erasure
from arkloop.shared.accounts.org_settings import NAMES
from arkloop.shared.audit import audit_log
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import orgs as orgs_table

Run = Callable[..., Result]
NOTHING = dict.fromkeys((*NAMES, "public_url"))
OPEN = dict.fromkeys(("suspended_at", "suspension_reason", "moved_to", "copy_began_at"))


@pytest.fixture
def org_id(connections: Connections) -> UUID:
    with connections.transaction() as tx:
        return accounts.create_org(tx, "acme")


@pytest.fixture
def run(connections: Connections, org_id: UUID) -> Run:
    """Call it with the words after `arkloop orgs`; `--org` is the test's unless it is given."""

    def run(command: str, *words: str) -> Result:
        env = {"ARKLOOP_DATABASE_URL": connections.settings.database_url}
        org = [] if command == "list" or "--org" in words else ["--org", str(org_id)]
        return CliRunner().invoke(orgs, [command, *org, *words], env=env)

    return run


def test_what_is_set_is_shown_and_what_is_not_given_stays(run: Run, org_id: UUID) -> None:
    """0 is no limit; `default` takes back what was set."""
    shown = [
        run("show"),
        run("set", "--org-concurrent-runs", "20", "--weight", "3"),
        run("set", "--org-streams", "0", "--weight", "default"),
        run("show"),
        run("set", "--org-streams", "default", "--org-concurrent-runs", "default"),
    ]

    first = {**NOTHING, "org_concurrent_runs": 20, "weight": 3}
    second = {**NOTHING, "org_concurrent_runs": 20, "org_streams": 0}
    assert [
        {"org_id": str(org_id), **own}
        for own in (OPEN | NOTHING, first, second, OPEN | second, NOTHING)
    ] == [json.loads(done.output) for done in shown]


def test_an_org_has_a_public_url_of_its_own(
    run: Run, org_id: UUID, connections: Connections
) -> None:
    """It is shown, listed and in the audit log, until `default` takes it back."""
    url = "https://acme.runs.example.com"
    shown = [
        json.loads(run(*words).output)["public_url"]
        for words in (
            ("set", "--public-url", url),
            ("set", "--weight", "default"),
            ("set", "--public-url", url),
            ("show",),
        )
    ]
    listed = [one for one in json.loads(run("list").output) if one["org_id"] == str(org_id)]
    taken = json.loads(run("set", "--public-url", "default").output)

    assert [url] * 4 == shown
    assert [url] == [one["public_url"] for one in listed]
    assert NOTHING.items() <= taken.items()
    assert str(org_id) not in run("list").output
    with connections.reading() as sql:
        rows = audit_log.list_(sql, org_id, {}, limit=9, before=None)
    assert [{"public_url": None}, {"public_url": url}] == [row.details for row in rows]


def test_the_list_has_those_with_settings_of_their_own(run: Run, org_id: UUID) -> None:
    """An org from which everything is taken back is not in it."""
    run("set", "--weight", "5")
    mine = [one for one in json.loads(run("list").output) if one["org_id"] == str(org_id)]
    run("set", "--weight", "default")

    names = {"org_id": str(org_id), "slug": None, "name": "acme", "suspended_at": None}
    assert [{**names, **NOTHING, "weight": 5}] == mine
    assert str(org_id) not in run("list").output


def test_changes_are_in_the_audit_log(run: Run, org_id: UUID, connections: Connections) -> None:
    """An entry has only what changed, with its new value; other commands have none."""
    for _ in range(2):
        run("set", "--key-streams", "4", "--weight", "2")
    run("set", "--key-streams", "default", "--weight", "2")

    with connections.reading() as sql:
        rows = audit_log.list_(sql, org_id, {}, limit=9, before=None)
    assert [{"key_streams": None}, {"key_streams": 4, "weight": 2}] == [row.details for row in rows]
    assert {("org.settings_changed", "operator")} == {(row.action, row.actor_type) for row in rows}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "Give at least one option"),
        (["--weight", "0"], "--weight: must be between 1 and 100"),
        (["--weight", "101"], "--weight: must be between 1 and 100"),
        (["--org-streams", "1000000000"], "--org-streams: must be between 0 and 999,999,999"),
        (["--org-streams", "-1"], "-1 is not in the range"),
        (["--org-streams", "many"], "'many' is not a valid integer"),
        (["--public-url", "http://acme.example.com"], "--public-url: must begin with https://"),
        (
            ["--weight", "2", "--public-url", "https://acme.example.com/console"],
            "--public-url: 'https://acme.example.com/console' is not an origin",
        ),
        (["--org", "nobody", "--weight", "2"], "No organization has the id or slug 'nobody'"),
    ],
)
def test_what_is_wrong_is_reported(run: Run, words: list[str], why: str) -> None:
    """One sentence is printed, and nothing is set."""
    refused = run("set", *words)

    assert refused.exit_code in (1, 2)
    assert why in refused.output
    assert NOTHING.items() <= json.loads(run("show").output).items()


def test_an_org_is_suspended_and_resumed(run: Run, org_id: UUID, connections: Connections) -> None:
    """It is shown and listed meanwhile, and the org's log has both."""
    suspended = json.loads(run("suspend", "--reason", "Unpaid bills").output)
    assert ("Unpaid bills", True) == (
        suspended["suspension_reason"],
        suspended["suspended_at"] is not None,
    )
    assert {**suspended, **NOTHING} == json.loads(run("show").output)
    [listed] = [one for one in json.loads(run("list").output) if one["org_id"] == str(org_id)]
    assert suspended["suspended_at"] == listed["suspended_at"]

    resumed = json.loads(run("resume").output)
    assert resumed == json.loads(run("resume").output)

    assert (None, None) == (resumed["suspended_at"], resumed["suspension_reason"])
    assert str(org_id) not in run("list").output
    with connections.reading() as sql:
        entries = audit_log.list_(sql, org_id, {}, limit=10, before=None)
    assert ["org.resumed", "org.suspended"] == [entry.action for entry in entries]


def test_an_org_that_is_resumed_without_an_owner_is_reported(
    run: Run, org_id: UUID, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only one was erased while another cell had its copy, which is not used."""
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)
    with connections.transaction() as tx:
        owner, _ = (
            accounts.create_user(
                tx, org_id=org_id, role=role, login=login, email=f"{login}@b.c", password_hash="-"
            )
            for role, login in (("owner", f"o-{org_id.hex}"), ("member", f"m-{org_id.hex}"))
        )
    run("suspend", "--reason", "It moves.")
    before = run("resume")
    run("suspend", "--reason", "It moves.")
    with connections.transaction() as tx:
        left = update(orgs_table).where(orgs_table.c.id == org_id)
        tx.sql.execute(left.values(moved_to=new_id()))
    erasure.erase_user(connections, owner)

    resumed = run("resume", "--despite-copy")

    assert (0, "", 0) == (before.exit_code, before.stderr, resumed.exit_code)
    assert None is json.loads(resumed.stdout)["moved_to"]
    assert f"arkloop users create --org {org_id} --role owner" in resumed.stderr


def test_a_suspension_without_a_reason_is_refused(run: Run) -> None:
    """One line says which option is wrong."""
    refused = run("suspend", "--reason", " ")
    assert (1, True) == (refused.exit_code, "--reason: must be a line" in refused.output)
