"""Databases behind row-level security, whose service has a role that owns nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, make_url, text

from arkloop.shared.storage import row_security, service_role

#: The role of a service that neither owns the tables nor stands above their policies.
ROLE = "arkloop_service"


def put_up(url: str) -> str:
    """Put the wall up in a migrated database; returns the URL for the service's role."""
    with owner(url) as engine:
        with engine.begin() as sql:
            if service_role.find(sql, ROLE) is None:
                sql.execute(text(f"CREATE ROLE {ROLE} LOGIN"))
            service_role.grant(sql, ROLE)
            # As where an owner has hardened the database.
            sql.execute(text("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC"))
            sql.execute(text(f"GRANT TRUNCATE ON ALL TABLES IN SCHEMA public TO {ROLE}"))
        row_security.enforce(engine, for_owner=False)
    return behind(url)


def behind(url: str) -> str:
    """Return the URL of the database for the service's role."""
    return as_user(url, ROLE)


def as_user(url: str, name: str) -> str:
    """Return the URL for a user of this name."""
    return make_url(url).set(username=name).render_as_string(hide_password=False)


@contextmanager
def owner(url: str) -> Iterator[Engine]:
    """Lend an engine of the superuser, who owns the tables."""
    engine = create_engine(as_user(url, "postgres"))
    yield engine
    engine.dispose()
