"""Constraints, indexes and triggers of the schema."""

from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, text

from arkloop.shared.storage import schema_objects

_TRIGGERS = """
    SELECT tgrelid::regclass::text, array_agg(tgname::text ORDER BY tgname) FROM pg_trigger
    WHERE NOT tgisinternal AND tgparentid = 0 GROUP BY 1
"""
_PARTITIONS = (
    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'run_events'::regclass"
)
_FOREIGN_KEYS = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'f'"


@pytest.mark.owner
def test_all_that_the_migrations_make_is_known(new_database: Callable[[], str]) -> None:
    """Nothing of it is missing in a new database, which has no trigger and no foreign key else."""
    engine = create_engine(new_database())
    with engine.begin() as sql:
        lacking = schema_objects.lacking(sql)
        triggers = {table: tuple(names) for table, names in sql.execute(text(_TRIGGERS)).all()}
        keys = [name for _, name in sql.execute(text(_FOREIGN_KEYS))]
        for table in triggers:
            sql.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        disabled = schema_objects.disabled(sql)
        partitions = sql.scalars(text(_PARTITIONS)).all()
        for table, name in sql.execute(text(_FOREIGN_KEYS)).all():
            sql.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT {name}"))
        without_keys = schema_objects.lacking(sql)
        sql.rollback()
    engine.dispose()

    assert [] == lacking
    assert schema_objects.TRIGGERS == triggers
    [of_events] = triggers["run_events"]
    named = {(table, name) for table, names in triggers.items() for name in names}
    assert named | {(partition, of_events) for partition in partitions} == {*disabled}
    assert {*keys} == {*without_keys}
