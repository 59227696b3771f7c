"""Dumps of databases, and their restore as the guide of operators describes it."""

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


def load(postgres: EmbeddedPostgres, dump: bytes, url: str) -> None:
    """Load the dump into the database in place of all that is in it, with the role of the URL."""
    restoring = _GUIDE.read_text().split("### Restoring a backup")[1]
    [emptying] = re.findall(r"^ *```sql\n(.*?DROP SCHEMA.*?)^ *```$", restoring, re.M | re.S)[:1]
    with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as sql:
        sql.execute(emptying)
    _output_of(postgres, url, "pg_restore", "--exit-on-error", "--dbname", given=dump)


def load_over(postgres: EmbeddedPostgres, dump: bytes, url: str) -> None:
    """Load the dump into a database that keeps what the dump does not name."""
    # It cannot drop keys of partitions, reports that, and continues.
    options = "--clean", "--if-exists", "--dbname"
    _output_of(postgres, url, "pg_restore", *options, given=dump, status=1)


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
