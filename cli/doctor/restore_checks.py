"""Losses of a restore of which every later step succeeds."""

from collections.abc import Iterator
from uuid import UUID

from sqlalchemy import Connection, text

from arkloop.cli.doctor.findings import Finding, fail, ok
from arkloop.shared.config import Settings
from arkloop.shared.events import partitions
from arkloop.shared.storage import schema, schema_objects

#: Names that are shown.
_SHOWN = 10
#: Runs of each partition that are looked at: as many of the oldest as of the newest.
_MOST = 100
_LAST_ID = UUID(int=(1 << 128) - 1)
_RESTORE_AGAIN = (
    "If nothing was stored since a dump was loaded, load it again, in sections:"
    " docs/how-to/operations.md; otherwise "
)

# Each run by an index: joined, the tables might be read as a whole.
_WITHOUT_EVENTS = text(
    """
    SELECT id FROM (
        (SELECT id, ended_at FROM runs WHERE id >= :lower AND id <= :upper
            ORDER BY id LIMIT :most)
        UNION
        (SELECT id, ended_at FROM runs WHERE id >= :lower AND id <= :upper
            ORDER BY id DESC LIMIT :most)
    ) AS r
    WHERE ended_at IS NOT NULL AND (
        SELECT seq FROM run_events WHERE run_id = r.id ORDER BY run_id, seq LIMIT 1
    ) IS NULL
    ORDER BY id
    """
)


def of_objects(_settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Find constraints, indexes and triggers that are not there, or have no effect."""
    if schema.current_version(sql) != schema.needed_version():
        return  # a newer schema may do without some of them
    disabled = schema_objects.disabled(sql)
    if disabled:
        enabled = "; ".join(
            f"ALTER TABLE {table} ENABLE TRIGGER {name}" for table, name in disabled
        )
        yield fail(
            "disabled triggers",
            f"{', '.join(dict.fromkeys(name for _, name in disabled))}: disabled, so that nothing"
            " calls them",
            f"As the owner: {enabled}",
        )
    unchecked = schema_objects.unchecked(sql)
    if unchecked:
        enabled = "; ".join(f"ALTER TABLE {table} ENABLE TRIGGER ALL" for table in unchecked)
        yield fail(
            "disabled triggers",
            f"{', '.join(unchecked)}: foreign keys of or to them are switched off",
            f"As a superuser: {enabled}. That does not check the rows that were stored meanwhile.",
        )
    lacking = schema_objects.lacking(sql)
    if not lacking and not disabled and not unchecked:
        yield ok("schema objects", "all constraints, indexes and triggers are there")
    if not lacking:
        return
    more = f" and {len(lacking) - _SHOWN} others" if len(lacking) > _SHOWN else ""
    yield fail(
        "schema objects",
        f"the schema lacks {', '.join(lacking[:_SHOWN])}{more}, or they are invalid",
        f"{_RESTORE_AGAIN}make them as a new database has them (`pg_dump --schema-only`).",
    )


def of_events(_settings: Settings, sql: Connection) -> Iterator[Finding]:
    """Find ended runs without any event, which no run has before it is deleted."""
    found: list[UUID] = []
    lower = UUID(int=0)
    for upper in [*(UUID(int=one.upper.int - 1) for one in partitions.read(sql)), _LAST_ID]:
        values = {"lower": lower, "upper": upper, "most": _MOST}
        found += sql.scalars(_WITHOUT_EVENTS, values).all()
        lower = UUID(int=min(upper.int + 1, _LAST_ID.int))
    if found:
        yield fail(
            "lost events",
            f"{len(found):,} of the runs that were looked at have ended and have no event, such as"
            f" {found[0]} and {found[-1]}",
            f"{_RESTORE_AGAIN}keep the database, and these runs without their events: loading would"
            " delete what is newer.",
        )
