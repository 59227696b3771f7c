"""The role that the service has in Postgres, and what a role that owns no table needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from arkloop.shared.storage.tables import metadata

#: What works with the privileges of the tables' owner, to keep the partitions of events.
FUNCTIONS = "add_run_events_partition", "drop_run_events_partition", "admit_run_events"
#: What works with the privileges of the role itself, for queries and for each other. Functions of
#: triggers need no grant.
OWN_FUNCTIONS = (
    *("append_audit_entry", "month_usd", "queue_of", "run_events_partitions", "run_refusals"),
    *("unended_runs", "uuid_time"),
)


@dataclass(frozen=True, slots=True)
class Role:
    """A role, as far as it matters for row-level security."""

    name: str
    is_above_policies: bool  # a superuser, or one with BYPASSRLS
    owns_tables: bool


def find(sql: Connection, name: str) -> Role | None:
    """Return the role of this name, None if there is none."""
    row = sql.execute(
        text(
            "SELECT r.rolname, r.rolsuper OR r.rolbypassrls, coalesce((SELECT"
            " pg_has_role(r.oid, c.relowner, 'USAGE') FROM pg_class c"
            " WHERE c.oid = to_regclass('runs')), false) FROM pg_roles r WHERE r.rolname = :name"
        ),
        {"name": name},
    ).one_or_none()
    return None if row is None else Role(*row)


def stray_functions(sql: Connection) -> tuple[str, str] | None:
    """Return the owners of the tables and of the functions that keep their partitions, quoted,
    if they differ: then the functions may not do what they are for, nor be granted. Else None.
    """
    row = sql.execute(
        text(
            "SELECT quote_ident(pg_get_userbyid(c.relowner)),"
            " quote_ident(pg_get_userbyid(p.proowner))"
            " FROM pg_class c JOIN pg_proc p ON p.proowner <> c.relowner"
            " AND p.oid = ANY (SELECT to_regproc(name) FROM unnest(CAST(:names AS text[])) AS name)"
            " WHERE c.oid = to_regclass('run_events') LIMIT 1"
        ),
        {"names": list(FUNCTIONS)},
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def handing_over(owner: str) -> str:
    """Return the statements after which these functions belong to `owner`, which is quoted."""
    return "; ".join(f"ALTER FUNCTION {name} OWNER TO {owner}" for name in FUNCTIONS)


def lacking(sql: Connection, role: str | None = None) -> list[str]:
    """Return the service's tables that the role may not read or write, by name.

    Without a `role` it is the session's.
    """
    rows = sql.scalars(
        text(
            "SELECT relname FROM pg_class, coalesce(CAST(:role AS name), current_user) AS role"
            " WHERE relname = ANY(:tables) AND relnamespace = current_schema()::regnamespace"
            " AND NOT (has_table_privilege(role, pg_class.oid, 'SELECT')"
            " AND has_table_privilege(role, pg_class.oid, 'INSERT')"
            " AND has_table_privilege(role, pg_class.oid, 'UPDATE')"
            " AND has_table_privilege(role, pg_class.oid, 'DELETE')) ORDER BY 1"
        ),
        {"role": role, "tables": list(metadata.tables)},
    )
    return list(rows)


def barred(sql: Connection, functions: Sequence[str], role: str | None = None) -> list[str]:
    """Return those of the functions that the role may not execute, or that are gone.

    Without a `role` it is the session's.
    """
    rows = sql.scalars(
        text(
            "SELECT name FROM unnest(CAST(:names AS text[])) AS name WHERE to_regproc(name) IS NULL"
            " OR NOT has_function_privilege(coalesce(CAST(:role AS name), current_user),"
            " to_regproc(name), 'EXECUTE')"
        ),
        {"role": role, "names": list(functions)},
    )
    return list(rows)


def open_to_all(sql: Connection) -> list[str]:
    """Return those of the functions with the owner's privileges that every role may execute."""
    rows = sql.scalars(
        text(
            "SELECT name FROM unnest(CAST(:names AS text[])) AS name"
            " WHERE has_function_privilege('public', to_regproc(name), 'EXECUTE')"
        ),
        {"names": list(FUNCTIONS)},
    )
    return list(rows)


def owner_of_functions(sql: Connection) -> str:
    """Return the owner of the functions with the owner's privileges, quoted."""
    query = "SELECT quote_ident(pg_get_userbyid(proowner)) FROM pg_proc WHERE oid = to_regproc(:of)"
    return str(sql.scalar(text(query), {"of": FUNCTIONS[0]}))


def close(sql: Connection) -> None:
    """Let nobody execute the functions with the owner's privileges who was not granted that.

    Postgres lets everybody at first. Migrations take that away, but a restore makes it so again
    where it does not find the role that a dump grants it to.
    """
    sql.exec_driver_sql(f"REVOKE ALL ON FUNCTION {', '.join(FUNCTIONS)} FROM PUBLIC")


def has_all(sql: Connection, role: str) -> bool:
    """Return whether privileges are as `grant` makes them, and the role has what it needs."""
    may_read = text(
        "SELECT has_schema_privilege(:role, current_schema(), 'USAGE')"
        " AND has_table_privilege(:role, 'alembic_version', 'SELECT')"
    )
    functions = (*FUNCTIONS, *OWN_FUNCTIONS)
    return bool(
        sql.scalar(may_read, {"role": role})
        and not lacking(sql, role)
        and not barred(sql, functions, role)
        and not open_to_all(sql)
    )


def grant(sql: Connection, role: str) -> None:
    """Let the role read and write the service's tables, and keep its partitions; no more.

    It gets nothing of other applications in the same schema, nor of the partitions by themselves.
    """
    close(sql)
    quote = sql.dialect.identifier_preparer.quote_identifier
    schema = sql.scalar(text("SELECT quote_ident(current_schema())"))
    for privilege in (
        f"USAGE ON SCHEMA {schema}",
        f"SELECT, INSERT, UPDATE, DELETE ON {', '.join((*metadata.tables, 'alembic_version'))}",
        f"EXECUTE ON FUNCTION {', '.join((*FUNCTIONS, *OWN_FUNCTIONS))}",
    ):
        sql.exec_driver_sql(f"GRANT {privilege} TO {quote(role)}")
