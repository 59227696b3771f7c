"""Row-level security: a second wall between orgs, which Postgres itself builds.

Each table with data of orgs has one policy: its rows are those of the orgs that the statement works
for, as `arkloop.orgs` says, or all if that says that it works for the service as a whole. Where it
says nothing there are no rows. Policies are made by `enforce`, not by migrations: until then the
database has none, and statements cost what they did.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from arkloop.shared.storage import schema
from arkloop.shared.storage.tables import metadata

#: Tables without data of an org, each with the reason why no policy is needed.
OPEN: Mapping[str, str] = {
    "alembic_version": "the version of the schema",
    "forgotten_events": "ids of runs that are gone",
    "forgotten_runs": "nothing",
    "installation": "the identity of the database",
    "measurements": "numbers of all orgs together",
    "spent_login_states": "hashes of logins that were completed",
    "sweep_turn": "the times of the last sweep and of the last tidying up",
    "usage_days_until": "the progress of the sums of usage",
}

#: The setting, and what it says for the service as a whole; else ids of orgs with commas between.
_SETTING = "(SELECT current_setting('arkloop.orgs', true))"
_ORGS = (
    "((SELECT string_to_array(nullif(current_setting('arkloop.orgs', true), '*'), ',')::uuid[])"
    "::uuid[])"
)


def _in(column: str) -> str:
    return f"{column} = ANY {_ORGS}"


def _beside(table: str, column: str, other: str) -> str:
    """Return the condition that `table` has the row that `other` refers to; its policy counts."""
    # OFFSET: looked up for each row. Without it Postgres may read all of the other table before.
    return f"EXISTS (SELECT FROM {table} AS seen WHERE seen.{column} = {other} OFFSET 0)"


#: Where there is no `org_id`, or it does not say all.
_CONDITIONS: Mapping[str, str] = {
    "orgs": _in("id"),
    "refresh_tokens": f"{_in('org_id')} OR org_id IS NULL"
    f" AND {_beside('memberships', 'user_id', 'refresh_tokens.user_id')}",
    # An account is shared by the orgs that a user is in.
    "users": _beside("memberships", "user_id", "users.id"),
    "password_resets": _beside("memberships", "user_id", "password_resets.user_id"),
    "operators": _beside("memberships", "user_id", "operators.user_id"),
    "identities": _beside("identity_providers", "id", "identities.provider_id"),
    "thread_contexts": _beside("threads", "id", "thread_contexts.thread_id"),
    **{
        table: _beside("runs", "id", f"{table}.run_id")
        for table in (
            *("agent_checkpoints", "agent_runs", "inputs", "run_events", "sub_runs", "tool_calls"),
        )
    },
    **{
        table: _beside("mcp_configs", "id", f"{table}.config_id")
        for table in ("mcp_authorizations", "mcp_grants", "mcp_tools")
    },
    # Pairs of what is private have the id of a user.
    "run_metadata": f"{_in('visible_to')} OR {_beside('runs', 'id', 'run_metadata.id')}",
    "thread_metadata": f"{_in('visible_to')} OR {_beside('threads', 'id', 'thread_metadata.id')}",
}


def policies() -> dict[str, str]:
    """Return the condition of each table that has a policy.

    Raises:
        LookupError: a table has no `org_id`, and nothing here says whose its rows are.
    """
    made = {}
    for name, table in metadata.tables.items():
        if name in OPEN:
            continue
        if name not in _CONDITIONS and "org_id" not in table.columns:
            raise LookupError(f"row_security.py does not say whose the rows of {name} are")
        condition = _CONDITIONS.get(name) or _in("org_id")
        # CASE: nothing else is looked at for the service, and Postgres thinks of half of the rows,
        # not of hardly any, which would change its plans.
        made[name] = f"CASE WHEN {_SETTING} = '*' THEN true ELSE {condition} END"
    return made


#: With this the name of each policy begins, whichever release has made it.
_PREFIX = "of_orgs_"


def _name_of(condition: str) -> str:
    """Return the policy's name, which says what it is: another condition has another name."""
    return f"{_PREFIX}{hashlib.sha256(condition.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class _Table:
    """A table, and its part of the wall."""

    is_walled: bool
    is_for_owner: bool
    policies: list[str]


def is_on(sql: Connection) -> bool:
    """Return whether the wall is up; the table of runs is the last that gets it."""
    return bool(
        sql.scalar(
            text("SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass('runs')"),
        )
    )


def without_policy(sql: Connection) -> list[str]:
    """Return the tables that lack their part of the wall, by name."""
    present = _tables(sql)
    return [
        table
        for table, condition in sorted(policies().items())
        if table not in present
        or not present[table].is_walled
        or present[table].policies != [_name_of(condition)]
    ]


def enforce(engine: Engine, *, for_owner: bool, lock_seconds: float = 0.0) -> list[str]:
    """Put the wall up; returns the tables that were changed.

    `for_owner`: it is before the owner of the tables, too, where the service has the owner's role.
    Each table is locked for a moment; `lock_seconds` is how long to try where others hold one.

    Raises: as `schema.upgrade`; what is done by then stays, and harms nobody.
    """
    with engine.connect() as sql:
        present = _tables(sql)
    changed = []
    for table, condition in sorted(policies().items(), key=lambda one: one[0] == "runs"):
        wanted = _Table(True, for_owner, [_name_of(condition)])
        if (there := present[table]) != wanted:
            force = "FORCE" if for_owner else "NO FORCE"
            steps = [
                *_drop(engine, table, there.policies),
                f"CREATE POLICY {wanted.policies[0]} ON {table} USING ({condition})",
                f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, {force} ROW LEVEL SECURITY",
            ]
            schema.change(engine, steps, lock_seconds=lock_seconds)
            changed.append(table)
    return changed


def lift(engine: Engine, *, lock_seconds: float = 0.0) -> None:
    """Take the wall down, as `enforce` puts it up, also from tables that a later release has made.

    Tables of other applications in the same schema keep their policies.
    """
    with engine.connect() as sql:
        present = _tables(sql)
    for table, there in present.items():
        is_ours = table in metadata.tables
        dropped = [name for name in there.policies if is_ours or name.startswith(_PREFIX)]
        if not dropped and not (is_ours and there.is_walled):
            continue
        steps = _drop(engine, table, dropped)
        if dropped == there.policies:
            off = "DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY"
            steps.append(f"ALTER TABLE {_quoted(engine, table)} {off}")
        schema.change(engine, steps, lock_seconds=lock_seconds)


def _tables(sql: Connection) -> dict[str, _Table]:
    rows = sql.execute(
        text(
            "SELECT relname, relrowsecurity, relforcerowsecurity,"
            " ARRAY(SELECT polname::text FROM pg_policy WHERE polrelid = c.oid)"
            " FROM pg_class c WHERE relkind IN ('r', 'p') AND NOT relispartition"
            " AND relnamespace = current_schema()::regnamespace"
        )
    )
    return {row[0]: _Table(*row[1:]) for row in rows}


def _drop(engine: Engine, table: str, names: Sequence[str]) -> list[str]:
    on = _quoted(engine, table)
    return [f"DROP POLICY {_quoted(engine, name)} ON {on}" for name in names]


def _quoted(engine: Engine, name: str) -> str:
    return engine.dialect.identifier_preparer.quote(name)
