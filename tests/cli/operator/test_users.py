"""`arkloop users`, and the development key."""

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from flask.testing import FlaskClient
from sqlalchemy import insert, text

from arkloop.api.app import create_app
from arkloop.cli.main import main
from arkloop.cli.operator.users import ensure_dev_key, users
from arkloop.shared.accounts import accounts, erasure
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.tables.accounts import identities, identity_providers
from tests.clients import PASSWORD
from tests.closed_port import closed_port

Run = Callable[..., Result]


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def run(database: str) -> Run:
    """Call it with the words after `arkloop users`."""

    def run(*words: str, **kwargs: object) -> Result:
        env = {"ARKLOOP_DATABASE_URL": database}
        return CliRunner().invoke(users, words, env=env, **kwargs)

    return run


@pytest.fixture
def client(settings: Settings, database: str) -> Iterator[FlaskClient]:
    """The client of an app on the command's database."""
    connections = connect(replace(settings, database_url=database), application="tests")
    yield create_app(connections=connections).test_client()
    connections.close()


def options(*flags: str, **changes: str) -> list[str]:
    values = {"org": "acme", "role": "owner", "login": "alice", "email": "a@b.c"}
    values |= {"password": PASSWORD, **changes}
    return [*flags, *(word for name, value in values.items() for word in (f"--{name}", value))]


def test_a_user_is_made_and_can_log_in(run: Run, client: FlaskClient) -> None:
    """The command prints the id and nothing else."""
    made = run("create", *options("--create", role="admin"))

    assert 0 == made.exit_code, made.output
    token = client.post("/v1/auth/login", json={"login": "alice", "password": PASSWORD}).json
    me = client.get("/v1/me", headers={"Authorization": f"Bearer {(token or {})['access_token']}"})
    assert me.json is not None
    shown = [me.json[name] for name in ("id", "username", "email", "org_name", "role")]
    assert [made.output.strip(), "alice", "a@b.c", "acme", "admin"] == shown


def test_users_of_one_slug_are_colleagues(run: Run) -> None:
    """The org is made by the first of them; `--create` finds it from then on."""
    run("create", *options("--create"))
    run("create", *options(login="bob", email="b@b.c", role="member"))
    run("create", *options("--create", login="eve", email="e@b.c", org="other"))

    listed = json.loads(run("list", "--json").output)
    assert ["alice", "bob", "eve"] == [user["login"] for user in listed]
    assert ["acme", "acme", "other"] == [user["org"] for user in listed]


def test_the_list_has_a_line_for_each(run: Run) -> None:
    """Tabs stand between the fields, as a login may have spaces."""
    made = run("create", *options("--create", login="Ann  of the desk"))

    [listed] = json.loads(run("list", "--json").output)
    row = [
        made.output.strip(),
        "Ann of the desk",
        "a@b.c",
        "acme",
        "owner",
        listed["org_id"],
        "acme",
    ]
    assert "\t".join(row) + "\n" == run("list").output


def test_lists_are_whole_on_a_narrow_terminal(
    run: Run, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other commands take the ids and slugs at the end of a line."""
    run("create", *options("--create", org="a-slug-of-some-length", email=f"{'a' * 60}@b.c"))
    [user] = json.loads(run("list", "--json").output)
    for name, value in {"ARKLOOP_DATABASE_URL": database, "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    main.main(["admin", "operators", "add", "alice"], standalone_mode=False)
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        main.main(["users", "list"], standalone_mode=False)
        main.main(["admin", "operators", "list"], standalone_mode=False)
        terminal.flush()
        output = b""
        while output.count(b"\n") < 2:
            output += os.read(ours, 4096)
    os.close(ours)

    assert f"  owner  {user['org_id']}  a-slug-of-some-length\r\n" in output.decode()
    assert f"{user['id']}  alice  {'a' * 60}@b.c  20" in output.decode()


def test_the_password_is_asked_for(run: Run, client: FlaskClient) -> None:
    """The password is prompted for, so that it is in no shell history."""
    words = options("--create")[: -len(["--password", PASSWORD])]

    asked = run("create", *words, input=f"{PASSWORD}\n{PASSWORD}\n")

    assert 0 == asked.exit_code, asked.output
    assert PASSWORD not in asked.output
    body = {"login": "alice", "password": PASSWORD}
    assert 200 == client.post("/v1/auth/login", json=body).status_code


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"login": "a@b"}, "--login"),
        ({"email": "nobody"}, "--email"),
        ({"password": "short"}, "--password"),
        ({"role": "king"}, "--role"),
        ({"org": "Acme Inc."}, "--org"),
        ({"org": "a" * 31}, "--org"),
        ({"org": "a-"}, "--org"),
    ],
)
def test_what_is_wrong_is_said(run: Run, changes: dict[str, str], named: str) -> None:
    """The status is 2, and no user is made."""
    refused = run("create", *options("--create", **changes))

    assert 2 == refused.exit_code
    assert named in refused.output
    assert "" == run("list").output


def test_an_org_that_is_unknown_is_made_only_on_request(run: Run) -> None:
    """A slip of the pen makes no org; nor does an id."""
    slip = run("create", *options())
    unknown_id = run("create", *options("--create", org="01a20e81-4bd5-70da-88f9-366c61169856"))

    assert 1 == slip.exit_code
    assert "No organization has the id or slug 'acme'" in slip.output
    assert "--create" in slip.output
    assert 0 != unknown_id.exit_code
    assert "" == run("list").output


def test_a_stranger_who_takes_the_name_does_not_get_the_colleagues(
    run: Run, client: FlaskClient
) -> None:
    """Registration names an org after its login; a command does not find it by that name."""
    stranger = {"login": "acme", "email": "stranger@b.c", "password": PASSWORD}
    assert 201 == client.post("/v1/auth/register", json=stranger).status_code
    [org_of_stranger] = [user["org_id"] for user in json.loads(run("list", "--json").output)]

    refused = run("create", *options())
    made = run("create", *options("--create"))
    named = run("create", *options(org=org_of_stranger, login="bob", email="bob@b.c"))

    assert 1 == refused.exit_code
    assert f"  {org_of_stranger}\n" in refused.output
    assert (0, 0) == (made.exit_code, named.exit_code)
    _stranger, alice, bob = json.loads(run("list", "--json").output)
    assert org_of_stranger != alice["org_id"]
    assert (org_of_stranger, None) == (bob["org_id"], bob["org_slug"])
    assert ("acme", "acme") == (alice["org"], alice["org_slug"])


def test_a_login_that_is_taken_is_said(run: Run) -> None:
    """It exits with status 1 and a sentence, without a traceback."""
    run("create", *options("--create"))

    refused = run("create", *options("--create", login="ALICE", email="other@b.c"))

    assert (1, "Error: The login or the email is already in use.\n") == (
        refused.exit_code,
        refused.output,
    )


def test_a_database_out_of_reach_is_said() -> None:
    """It exits with status 1 and a sentence, without a traceback."""
    url = f"postgresql://nobody@127.0.0.1:{closed_port()}/nothing"

    refused = CliRunner().invoke(users, ["list", "--database-url", url])

    assert 1 == refused.exit_code
    assert refused.output.startswith("Error: The database is unavailable")


# ---- the development key -------------------------------------------------------------


def test_the_dev_key_is_an_owners_and_secret(
    database: str, client: FlaskClient, tmp_path: Path
) -> None:
    """User dev in org dev; nobody else on the machine can read the file."""
    path = tmp_path / "api-key"

    ensure_dev_key(database, path)

    me = client.get("/v1/me", headers=_bearer(path)).json
    assert me is not None
    assert ("dev", "dev", "owner") == (me["username"], me["org_name"], me["role"])
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [path] == list(tmp_path.iterdir())


def test_the_dev_key_is_not_of_a_stranger_named_dev(
    database: str, client: FlaskClient, tmp_path: Path
) -> None:
    """Somebody may have registered the login `dev`, and with it an org of this name."""
    stranger = {"login": "DEV", "email": "dev@localhost", "password": PASSWORD}
    registered = client.post("/v1/auth/register", json=stranger).json or {}
    theirs = client.get(
        "/v1/me", headers={"Authorization": f"Bearer {registered['access_token']}"}
    ).json
    path = tmp_path / "api-key"

    ensure_dev_key(database, path)

    me = client.get("/v1/me", headers=_bearer(path)).json
    assert me is not None and theirs is not None
    assert theirs["org_id"] != me["org_id"]
    assert ("dev", "owner") == (me["org_name"], me["role"])


def test_a_dev_key_that_works_is_left_alone(database: str, tmp_path: Path) -> None:
    """A key that a developer has pasted somewhere stays valid; its file is closed again."""
    path = tmp_path / "api-key"
    ensure_dev_key(database, path)
    key = path.read_text()
    path.chmod(0o644)

    ensure_dev_key(database, path)

    assert (key, 0o600) == (path.read_text(), stat.S_IMODE(path.stat().st_mode))


@pytest.mark.parametrize("damage", ["revoked", "garbled", "emptied", "removed", "another database"])
def test_a_dev_key_that_does_not_work_is_replaced(
    database: str,
    client: FlaskClient,
    tmp_path: Path,
    damage: str,
    new_database: Callable[[], str],
) -> None:
    """A dev key that does not work is replaced by one of the same user in the same org."""
    path = tmp_path / "api-key"
    ensure_dev_key(new_database() if damage == "another database" else database, path)
    if damage == "revoked":
        connections: Connections = client.application.extensions["arkloop"]
        with connections.transaction() as tx:
            tx.sql.execute(text("UPDATE api_keys SET revoked_at = now()"))
    elif damage == "garbled":
        path.write_bytes(b"\xff\x00not a key")
    elif damage == "emptied":
        path.write_text("")
    elif damage == "removed":
        path.unlink()

    ensure_dev_key(database, path)

    assert 200 == client.get("/v1/me", headers=_bearer(path)).status_code


def _bearer(path: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {path.read_text().strip()}"}


def test_a_password_is_reset_by_a_token(run: Run, client: FlaskClient) -> None:
    """The command prints the token and nothing else; an unknown login is an error."""
    run("create", *options("--create"))
    token = run("reset-password", "A@B.C").output.strip()
    body = {"token": token, "password": "a quite new password"}

    assert 200 == client.post("/v1/auth/password-reset", json=body).status_code
    login = {"login": "alice", "password": body["password"]}
    assert 200 == client.post("/v1/auth/login", json=login).status_code
    unknown = run("reset-password", "bob")
    assert 1 == unknown.exit_code
    assert "No user has the login or email 'bob'" in unknown.output


def test_a_user_is_exported_and_erased(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of JSON, then a question, then the record; the login is free again."""
    user_id = run("create", *options("--create")).output.strip()
    lines = [json.loads(line) for line in run("export", "alice").output.splitlines()]
    assert ["user", "membership"] == [line["type"] for line in lines]

    assert 1 == run("erase", "alice", input="n\n").exit_code
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)
    record = json.loads(run("erase", "alice", "--yes").output)
    [listed] = json.loads(run("list", "--json").output)
    assert (f"@erased-{user_id}", None) == (listed["login"], listed["org_id"])

    assert ("user", user_id, 0) == (record["kind"], record["user_id"], record["threads"])
    assert 1 == run("erase", "alice", "--yes").exit_code
    assert 0 == run("create", *options()).exit_code


def test_orgs_that_would_take_an_erased_person_in_again_are_named(
    run: Run, settings: Settings, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the domain of the address, or their provider knows the person."""
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)
    user_id = run("create", *options("--create", email="alice@Corp.example")).output.strip()
    connections = connect(replace(settings, database_url=database), application="tests")
    with connections.transaction() as tx:
        names = ("domain", "known", "another", "no domain")
        org_ids = [accounts.create_org(tx, name) for name in names]
        domains: list[list[str]] = [["corp.example"], ["other.example"], ["other.example"], []]
        providers = [
            {"id": new_id(), "org_id": org_id, "email_domains": of_org}
            for org_id, of_org in zip(org_ids, domains, strict=True)
        ]
        same = {"issuer": "https://login.example.com", "client_id": "arkloop", "session_hours": 12}
        same |= {"signing_algorithm": "RS256", "joining_role": "admin"}
        same |= {"assumes_verified_email": False}
        tx.sql.execute(insert(identity_providers), [{**same, **one} for one in providers])
        known = [
            {"id": new_id(), "provider_id": one["id"], "subject": "sub-1", "user_id": user_id}
            for one in (providers[1], providers[3])
        ]
        tx.sql.execute(insert(identities), known)
    connections.close()

    erased = run("erase", "alice", "--yes")

    json.loads(erased.stdout)
    lines = erased.stderr.splitlines()
    expected = [(str(org_ids[0]), "corp.example"), (str(org_ids[1]), "other.example")]
    named = sorted((line.split()[1], line.split()[6]) for line in lines)
    assert sorted(expected) == named, erased.stderr


def test_the_only_owner_of_others_is_not_erased(run: Run) -> None:
    """The command says what to do first."""
    run("create", *options("--create"))
    run("create", *options(role="member", login="bob", email="b@b.c"))

    refused = run("erase", "alice", "--yes")

    assert 1 == refused.exit_code
    assert "Make another one an owner first" in refused.output
    assert "If `arkloop orgs copy` of the organization was broken off" in refused.output
