"""Privileges of the service's role between two migrations: the release before works with them."""

from collections.abc import Callable

import psycopg
from alembic import command
from sqlalchemy import text

from arkloop.shared.ids import new_id
from arkloop.shared.storage import service_role
from tests import walls
from tests.shared.storage.test_schema import alembic_config, migrated_to


def test_limits_are_judged_before_the_last_migration_is_done(
    new_database: Callable[[], str],
) -> None:
    """The function that judges them has another table than before, and so has its caller's role."""
    engine = migrated_to("0060", walls.as_user(new_database(), "postgres"))
    with engine.begin() as sql:
        if service_role.find(sql, walls.ROLE) is None:
            sql.execute(text(f"CREATE ROLE {walls.ROLE} LOGIN"))
        sql.execute(
            text(
                f"GRANT USAGE ON SCHEMA public TO {walls.ROLE};"
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
                f" TO {walls.ROLE}"
            )
        )
    config = alembic_config()
    with engine.connect() as sql:
        config.attributes["connection"] = sql
        command.upgrade(config, "0061")
        sql.commit()
    engine.dispose()

    url = walls.behind(engine.url.render_as_string(hide_password=False))
    with psycopg.connect(url.replace("+psycopg", "", 1)) as service:
        judged = service.execute(
            "SELECT run_refusals(ARRAY[%s::uuid], ARRAY[NULL::uuid], '{0}', '{1}', '{0}')",
            [new_id()],
        ).fetchone()
    assert judged == ([None],)
