"""`deploy/compose.walled.yaml`: the containers' role owns nothing and is behind the wall."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from sqlalchemy import create_engine, make_url, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.main import main
from arkloop.shared.accounts import accounts
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import connect
from tests.test_compose import COMPOSE, ROOT, interpolated

pytestmark = pytest.mark.processes

WALLED: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.walled.yaml").read_text())
GIVEN = {
    "POSTGRES_PASSWORD": "a" * 48,
    "REDIS_PASSWORD": "b" * 48,
    "ARKLOOP_JWT_SECRET": "c" * 64,
    "POSTGRES_SERVICE_PASSWORD": "d" * 48,
}


def environment(service: str) -> dict[str, str]:
    """Return what a container of both files together has."""
    both = [files["services"][service]["environment"] for files in (COMPOSE, WALLED)]
    return {name: interpolated(value, GIVEN) for one in both for name, value in one.items()}


def test_the_file_is_of_the_compose_specification() -> None:
    """It changes services that there are, and nothing else."""
    schema = json.loads((ROOT / "tests" / "compose-spec.json").read_text())

    assert [] == [*Draft202012Validator(schema).iter_errors(WALLED)]
    assert WALLED["services"].keys() <= COMPOSE["services"].keys()


@pytest.mark.parametrize("service", ["web", "worker"])
def test_processes_do_not_have_the_owners_password(service: str) -> None:
    """What a request could reach of them is worth no more than the role's own rights."""
    assert GIVEN["POSTGRES_PASSWORD"] not in " ".join(environment(service).values())


@pytest.mark.parametrize("override", ["", ":compose.override.yaml"])
def test_the_guide_keeps_the_operators_own_file(tmp_path: Path, override: str) -> None:
    """Compose reads the operator's file no longer by itself: the guide puts it last in the list."""
    guide = (ROOT / "docs" / "how-to" / "operations.md").read_text()
    [snippet] = re.findall(r"^cat >> \.env <<END\n.*?^END\n", guide, re.DOTALL | re.MULTILINE)
    if override:
        (tmp_path / "compose.override.yaml").touch()

    subprocess.run(["sh", "-euc", snippet], cwd=tmp_path, check=True)

    files = f"compose.yaml:deploy/compose.walled.yaml{override}"
    assert f"COMPOSE_FILE={files}" in (tmp_path / ".env").read_text().splitlines()


@pytest.mark.owner
def test_its_migration_puts_the_service_behind_the_wall(
    postgres: EmbeddedPostgres, new_database: Callable[[], str], tmp_path: Path
) -> None:
    """The script makes the role, the first time and again; Postgres then shows it an org alone."""
    name = make_url(new_database()).database
    assert name is not None
    role = {
        "POSTGRES_USER": "postgres",
        "POSTGRES_DB": name,
        "PGHOST": str(postgres.sockets),
        "PATH": f"{postgres.binaries}:{os.environ['PATH']}",
        **environment("postgres"),
    }
    for _ in range(2):
        script = ["sh", str(ROOT / "deploy" / "service-role.sh")]
        subprocess.run(
            script, env=role | {"POSTGRES_DB": name, "POSTGRES_USER": "postgres"}, check=True
        )
    migrating = environment("migrate")
    owner, service = (
        here(migrating[f"ARKLOOP_{kind}DATABASE_URL"], postgres.url_of(name))
        for kind in ("OWNER_", "")
    )
    as_owner = make_url(owner).set(username="postgres").render_as_string(hide_password=False)

    command = WALLED["services"]["migrate"]["command"]
    done = CliRunner().invoke(
        main,
        command[3:],
        env={"ARKLOOP_OWNER_DATABASE_URL": as_owner, "ARKLOOP_DATABASE_URL": service},
    )

    assert 0 == done.exit_code and "Warning" not in done.output, done.output
    settings = Settings.from_env(environment("web") | {"ARKLOOP_DATABASE_URL": service})
    opened = connect(settings, application="tests-compose")
    with opened.transaction() as tx:
        ours, theirs = (accounts.create_org(tx, one) for one in ("ours", "theirs"))
    with opened.of(ours).reading() as sql:
        seen = {*sql.scalars(text("SELECT id FROM orgs"))}
        assert {ours} == seen and theirs not in seen
    opened.close()
    engine = create_engine(make_url(service).set(drivername="postgresql+psycopg"))
    with engine.connect() as sql:
        assert 0 == sql.scalar(text("SELECT count(*) FROM orgs"))
    engine.dispose()


def here(url: str, local: str) -> str:
    """Return the URL of a container's database for the tests' own server."""
    own = make_url(local)
    moved = own.set(username=make_url(url).username, drivername="postgresql")
    return moved.render_as_string(hide_password=False)
