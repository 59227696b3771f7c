"""Dumps of databases, and their restore as the guide of operators describes it."""

import os
import re
import subprocess
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres

_GUIDE = Path(__file__).parents[1] / "docs/how-to/operations.md"


def dumped(postgres: EmbeddedPostgres, url: str) -> bytes:
    """Return what `pg_dump` makes of the database, with the role of the URL."""
    return _output_of(postgres, url, "pg_dump", "--format=custom")


def dumped_by_the_service(postgres: EmbeddedPostgres, url: str, to: Path) -> None:
    """Dump to a file as a service that owns its tables does behind the wall."""
    [command] = re.findall(r"^PGOPTIONS=.*pg_dump.*$", _GUIDE.read_text(), re.M)
    _execute(postgres, url, command.replace("…", '--format=custom --file "$DUMP" "$URL"'), DUMP=to)


def load(postgres: EmbeddedPostgres, dump: bytes, url: str) -> None:
    """Load the dump into the database in place of all that is in it, with the role of the URL."""
    _empty(url)
    _output_of(postgres, url, "pg_restore", "--exit-on-error", "--dbname", given=dump)


def load_in_parallel(postgres: EmbeddedPostgres, dump: Path, url: str) -> None:
    """Do the same with the commands of the guide, which load a large table beside others."""
    _empty(url)
    _execute(
        postgres, url, _of_guide("sh", "pg_restore").replace("backup.dump", '"$DUMP"'), DUMP=dump
    )


def load_over(postgres: EmbeddedPostgres, dump: bytes, url: str) -> None:
    """Load the dump into a database that keeps what the dump does not name."""
    # It cannot drop keys of partitions, reports that, and continues.
    options = "--clean", "--if-exists", "--dbname"
    _output_of(postgres, url, "pg_restore", *options, given=dump, status=1)


def _of_guide(language: str, word: str) -> str:
    """Return the first block of the guide's restore that contains the word."""
    restoring = _GUIDE.read_text().split("### Restoring a backup")[1]
    blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```$", restoring, re.M | re.S)
    return next(str(block) for block in blocks if word in block)


def _empty(url: str) -> None:
    with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as sql:
        sql.execute(_of_guide("sql", "DROP SCHEMA"))


def _execute(postgres: EmbeddedPostgres, url: str, commands: str, **paths: Path) -> None:
    """Execute commands of the guide, which names the database `$RESTORED`."""
    known = {name: url.replace("+psycopg", "", 1) for name in ("URL", "RESTORED")}
    path = f"{postgres.binaries}:{os.environ['PATH']}"
    environ = {**known, **{name: str(one) for name, one in paths.items()}, "PATH": path}
    done = subprocess.run(["sh", "-euc", commands], env=environ, capture_output=True)
    assert (0, "") == (done.returncode, done.stderr.decode())


def _output_of(
    postgres: EmbeddedPostgres,
    url: str,
    program: str,
    *arguments: str,
    given: bytes = b"",
    status: int = 0,
) -> bytes:
    at = make_url(url)
    server = ["--host", str(postgres.sockets), "--username", str(at.username)]
    command = [str(postgres.binaries / program), *server, *arguments, str(at.database)]
    done = subprocess.run(command, input=given, capture_output=True)
    assert status == done.returncode, done.stderr.decode()
    return done.stdout
