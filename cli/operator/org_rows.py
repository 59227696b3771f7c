"""The rows of one org in each table, as they are copied to another installation.

What is copied follows from the metadata: a table with `org_id`, or one with a foreign key to a
table that is copied. A new table that is neither, nor named in `NOT_COPIED`, is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from uuid import UUID

from sqlalchemy import Table

from arkloop.shared.storage.tables import metadata

#: Tables that stay behind, each with the reason.
NOT_COPIED: Mapping[str, str] = {
    "alembic_version": "the version of the schema, which has to be the same",
    "counted_runs": "counted again within a second",
    "forgotten_events": "ids of runs that are gone; their events are not copied",
    "forgotten_runs": "always empty",
    "installation": "the identity of the database",
    "measurements": "numbers of all orgs together",
    "operators": "who operates an installation is decided there",
    "password_resets": "of a user, not of the org; the operator gives another one",
    "run_metadata": "made of `runs` by a trigger",
    "spent_login_states": "of minutes; a login that was begun before the move is begun again",
    "sweep_turn": "the times of the last sweep and of the last tidying up",
    "thread_metadata": "made of `threads` by a trigger",
    "usage_days": "those of each installation end at another day: see `org_copies.py`",
    "usage_days_until": "the progress of an installation",
    "usage_intervals": "those of each installation end at another time: see `org_copies.py`",
    "workers": "processes of an installation",
}

#: Inserted after all others, in this order: events have no foreign key to their runs, and a trigger
#: would make deliveries of them if the endpoints were there.
_LAST = ("run_events", "webhook_endpoints", "webhook_deliveries")


@dataclass(frozen=True, slots=True)
class OrgTable:
    """A table, and a FROM clause, with `{org}` for the id, by which `t` is its rows of an org."""

    name: str
    columns: tuple[str, ...]
    rows: str

    @property
    def quoted(self) -> str:
        """Return the columns for SQL, with commas between."""
        return ", ".join(f'"{column}"' for column in self.columns)

    def select(self, org_id: UUID, expressions: str | None = None) -> str:
        """Return the query of the org's rows."""
        shown = expressions or ", ".join(f't."{column}"' for column in self.columns)
        return f"SELECT {shown} FROM " + self.rows.format(org=f"'{org_id}'::uuid")


@cache
def tables() -> tuple[OrgTable, ...]:
    """Return the tables that are copied, in an order in which each row's references are there.

    Raises:
        LookupError: a table is not copied by its columns and not named in `NOT_COPIED`.
    """
    copied = [table for table in metadata.sorted_tables if table.name not in NOT_COPIED]
    copied.sort(key=lambda table: _LAST.index(table.name) if table.name in _LAST else -1)
    rows = {table.name: _rows(table) for table in copied if table.name != "users"}
    rows["users"] = _users(copied, rows)
    return tuple(OrgTable(table.name, _columns(table), rows[table.name]) for table in copied)


def _columns(table: Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.columns if column.computed is None)


def _rows(table: Table) -> str:
    if table.name == "orgs":
        return "orgs AS t WHERE t.id = {org}"
    if "org_id" in table.columns:
        return f"{table.name} AS t WHERE t.org_id = {{org}}"
    if table.name == "run_events":
        # Run by run: a plan for all at once would read the events of all orgs.
        return (
            "(SELECT id FROM runs WHERE org_id = {org} ORDER BY id) AS r CROSS JOIN LATERAL"
            " (SELECT * FROM run_events WHERE run_id = r.id ORDER BY seq) AS t"
        )
    for key in table.foreign_keys:
        parent = key.column.table
        if "org_id" in parent.columns and parent.name not in NOT_COPIED:
            chosen = f"SELECT {key.column.name} FROM {parent.name} WHERE org_id = {{org}}"
            return f"{table.name} AS t WHERE t.{key.parent.name} IN ({chosen})"
    raise LookupError(f"org_rows.py does not say whether rows of {table.name} are copied")


def _users(copied: list[Table], rows: Mapping[str, str]) -> str:
    """Return those whom a row of the org refers to: some have left it."""
    named = " UNION ".join(
        f"SELECT t.{key.parent.name} FROM {rows[table.name]}"
        for table in copied
        if table.name != "users"
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name)
        if key.column.table.name == "users"
    )
    return f"users AS t WHERE t.id IN ({named})"
