"""Privileges of the service's role: for what it does, and for the release before it."""

from collections.abc import Callable

import psycopg
from alembic import command
from sqlalchemy import create_engine, text

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


def test_the_role_may_append_audit_entries_where_no_function_is_for_everybody(
    new_database: Callable[[], str],
) -> None:
    url = walls.as_user(new_database(), "postgres")
    engine = create_engine(url)
    with engine.begin() as sql:
        sql.execute(text("REVOKE EXECUTE ON FUNCTION append_audit_entry FROM PUBLIC"))
        if service_role.find(sql, walls.ROLE) is None:
            sql.execute(text(f"CREATE ROLE {walls.ROLE} LOGIN"))
        service_role.grant(sql, walls.ROLE)
        may = text("SELECT has_function_privilege(:role, CAST(:name AS regproc), 'EXECUTE')")
        assert sql.scalar(may, {"role": walls.ROLE, "name": "append_audit_entry"})
    engine.dispose()
