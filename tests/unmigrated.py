"""Databases without the service's schema: empty, or with that of another application."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres


@contextmanager
def unmigrated(postgres: EmbeddedPostgres, options: str = "") -> Iterator[str]:
    """Create a database that was never migrated; yields its URL."""
    name = f"unmigrated_{secrets.token_hex(4)}"
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:
        sql.execute(text(f"CREATE DATABASE {name} {options}"))
        yield postgres.url_of(name)
        sql.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@contextmanager
def foreign(postgres: EmbeddedPostgres, version: str) -> Iterator[str]:
    """Create the database of another application that uses Alembic; yields its URL."""
    with unmigrated(postgres) as url:
        engine = create_engine(url)
        with engine.begin() as sql:
            sql.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
            sql.execute(text("INSERT INTO alembic_version VALUES (:v)"), {"v": version})
        engine.dispose()
        yield url
