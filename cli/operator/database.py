"""Commands that go straight to the database, for whoever may reach it: no server is needed."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from shared.config import FALLBACKS, Settings
from shared.database_url import InvalidDatabaseUrl, normalize
from shared.errors import Unavailable
from shared.storage.connections import Connections, connect

database_url_option = click.option(
    "--database-url",
    envvar=["ARKLOOP_DATABASE_URL", FALLBACKS["ARKLOOP_DATABASE_URL"]],
    required=True,
    help="Postgres to write to.  [default: $ARKLOOP_DATABASE_URL, else $DATABASE_URL]",
)


def checked(url: str) -> str:
    """Return the URL in SQLAlchemy's form. Raises: ClickException: it is malformed."""
    try:
        return normalize(url)
    except InvalidDatabaseUrl as error:
        raise click.ClickException(f"ARKLOOP_DATABASE_URL: {error}") from None


@contextmanager
def database(url: str) -> Iterator[Connections]:
    """Connect to the database alone: Redis and the broker are never used here."""
    settings = Settings(
        database_url=checked(url),
        redis_url="redis://",
        broker_url="redis://",
        jwt_secret="",
    )
    connections = connect(settings, application="arkloop-cli", pool_size=1)
    try:
        yield connections
    except Unavailable as error:
        raise click.ClickException(f"{error} ({error.__cause__})") from None
    finally:
        connections.close()
