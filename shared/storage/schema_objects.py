"""Constraints, indexes and triggers: objects that the migrations make beside tables and columns.

Statements work without them, so that nothing else notices that a restore has lost one.
"""

from sqlalchemy import Connection, text

from arkloop.shared.storage.tables import metadata

#: By their tables; the metadata does not know them.
TRIGGERS = {
    "audit_entries": ("audit_entries_are_kept", "audit_entries_are_not_truncated"),
    "audit_heads": (
        *("audit_heads_are_kept", "audit_heads_are_not_truncated", "audit_heads_move_on"),
    ),
    "ledger_entries": ("ledger_entries_stay",),
    "run_events": ("events_have_their_deliveries",),
    "run_usage": ("usage_of_private_runs_has_no_metadata",),
    "runs": (
        *("runs_are_visible_as_their_thread", "runs_have_their_pairs_deleted"),
        *("runs_have_their_pairs_inserted", "runs_have_their_pairs_updated"),
        "runs_leave_their_events",
    ),
    "spending": (
        *("budgets_have_their_deliveries_inserted", "budgets_have_their_deliveries_updated"),
    ),
    "threads": (
        *("threads_have_their_pairs_deleted", "threads_have_their_pairs_inserted"),
        *("threads_have_their_pairs_updated", "threads_have_their_root"),
        "threads_take_their_runs_along",
    ),
    "webhook_endpoints": ("endpoints_have_their_disabled_time",),
}

_LACKING = text(
    """
    SELECT name FROM unnest(CAST(:tables AS text[]), CAST(:names AS text[])) AS t (of_table, name)
    WHERE NOT EXISTS (
        SELECT FROM pg_constraint WHERE conrelid = to_regclass(of_table) AND conname = name
        UNION ALL
        SELECT FROM pg_index i JOIN pg_class c ON c.oid = indexrelid
        WHERE indrelid = to_regclass(of_table) AND relname = name AND indisvalid
        UNION ALL
        SELECT FROM pg_trigger
        WHERE tgrelid = to_regclass(of_table) AND tgname = name
    ) ORDER BY name
    """
)
# R: for replicas alone. Each partition has a copy of its own, which can be disabled alone.
_DISABLED = text(
    """
    SELECT tgrelid::regclass::text, tgname
    FROM unnest(CAST(:tables AS text[]), CAST(:names AS text[])) AS t (of_table, name)
    JOIN pg_trigger ON tgname = name AND (
        tgrelid = to_regclass(of_table)
        OR tgrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass(of_table))
    )
    WHERE tgenabled IN ('D', 'R') ORDER BY 2, 1
    """
)
# Postgres checks foreign keys by triggers of its own.
_UNCHECKED = text(
    """
    WITH named AS (
        SELECT to_regclass(name)::oid AS id FROM unnest(CAST(:tables AS text[])) AS name
    )
    SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger
    WHERE tgisinternal AND tgconstraint <> 0 AND tgenabled IN ('D', 'R') AND tgrelid IN (
        SELECT id FROM named
        UNION ALL SELECT inhrelid FROM pg_inherits JOIN named ON inhparent = id
    ) ORDER BY 1
    """
)


def lacking(sql: Connection) -> list[str]:
    """Return the names of those that are not there, and of indexes that are not valid.

    The schema has to be of this code's version.
    """
    pairs = _triggers()
    for table in metadata.tables.values():
        # Some tables have no key, for which the metadata has one without columns.
        key = {table.primary_key} if not table.primary_key.columns else set()
        pairs += [(table.name, str(one.name)) for one in table.constraints - key]
        pairs += [(table.name, str(one.name)) for one in table.indexes]
    return list(sql.scalars(_LACKING, _values(pairs)))


def disabled(sql: Connection) -> list[tuple[str, str]]:
    """Return table or partition and name of each trigger that is there, but disabled."""
    return [(table, name) for table, name in sql.execute(_DISABLED, _values(_triggers()))]


def unchecked(sql: Connection) -> list[str]:
    """Return the tables and partitions of which a foreign key, of or to them, has no effect."""
    return list(sql.scalars(_UNCHECKED, {"tables": list(metadata.tables)}))


def _triggers() -> list[tuple[str, str]]:
    return [(table, name) for table, names in TRIGGERS.items() for name in names]


def _values(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    tables, names = zip(*pairs, strict=True)
    return {"tables": list(tables), "names": list(names)}
