"""A Postgres of a test's own, with a hot standby that replicates it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.storage import schema


@dataclass(frozen=True)
class Pair:
    """`primary` has a migrated database `postgres`; `standby` refuses writes until promoted."""

    primary: EmbeddedPostgres
    standby: EmbeddedPostgres

    def url(self, *servers: EmbeddedPostgres) -> str:
        """Return the URL that lists these servers, as SQLAlchemy reads it."""
        hosts = ",".join(str(server.sockets) for server in servers)
        ports = ",".join("5432" for _ in servers)
        return f"postgresql+psycopg://postgres@/postgres?host={hosts}&port={ports}"

    def promote(self) -> None:
        """Make the standby accept writes."""
        engine = create_engine(self.standby.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as sql:
            assert sql.scalar(text("SELECT pg_promote()"))
        engine.dispose()


@contextmanager
def replicated_postgres(folder: Path, **of_standby: str) -> Iterator[Pair]:
    """Start both, the standby with these settings; both are stopped at the end."""
    options = {"fsync": "off"}
    with EmbeddedPostgres(folder / "primary", options=options) as primary:
        engine = create_engine(primary.url)
        schema.migrate(engine)
        engine.dispose()
        copy = folder / "standby"
        subprocess.run(
            [
                *(primary.binaries / "pg_basebackup", "--pgdata", copy, "--write-recovery-conf"),
                *("--host", primary.sockets, "--username", "postgres"),
                *("--checkpoint", "fast", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            env={"PATH": os.environ["PATH"]},
        )
        with EmbeddedPostgres(
            copy, options={**options, "hot_standby": "on", **of_standby}
        ) as standby:
            yield Pair(primary, standby)
