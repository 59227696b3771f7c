"""The tables of `shared` and the migrations describe one database."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, inspect, text

from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables import metadata
from arkloop.shared.storage.tables.runs import runs

pytestmark = pytest.mark.owner

COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated,
    pg_get_expr(d.adbin, d.adrelid)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relnamespace = CAST(:schema AS regnamespace)
"""
INDEXES = """
SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = :schema
    AND tablename NOT IN (SELECT relname FROM pg_class WHERE relispartition)
"""
CONSTRAINTS = """
SELECT c.relname, k.conname, pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE k.contype <> 'n' AND NOT c.relispartition AND c.relnamespace = CAST(:schema AS regnamespace)
"""
STORAGE = """
SELECT relname, unnest(reloptions) FROM pg_class
WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = CAST(:schema AS regnamespace)
"""


@pytest.fixture(scope="module")
def sql(connections: Connections) -> Iterator[Connection]:
    """The migrated tables are in `public`, those of the metadata in `wanted`."""
    with connections.engine.connect() as opened:
        opened.execute(text("CREATE SCHEMA wanted"))
        in_wanted = opened.execution_options(schema_translate_map={None: "wanted"})
        metadata.create_all(in_wanted)
        yield opened
        opened.rollback()


@pytest.mark.parametrize("query", [COLUMNS, INDEXES, CONSTRAINTS, STORAGE])
def test_the_migrations_make_the_tables(sql: Connection, query: str) -> None:
    """Columns, defaults, indexes, conditions, keys and storage settings are the same."""

    def described(schema: str) -> set[tuple[str, ...]]:
        rows = sql.execute(text(query), {"schema": schema})
        return {
            tuple(str(part).replace(f"{schema}.", "") for part in row)
            for row in rows
            if row[0] != "alembic_version"
        }

    wanted, made = described("wanted"), described("public")

    assert wanted
    assert set() == wanted - made, "no migration makes it"
    assert set() == made - wanted, "the tables of `shared` lack it"


def test_whatever_refers_to_a_run_has_an_index_for_it(sql: Connection) -> None:
    """Every reference to a run has an index, or each deletion of a run would read the whole
    table.
    """
    found = inspect(sql)
    for table in metadata.tables.values():
        for key in table.foreign_keys:
            if key.column.table is runs:
                first = [index["column_names"][0] for index in found.get_indexes(table.name)]
                first += found.get_pk_constraint(table.name)["constrained_columns"][:1]
                assert key.parent.name in first, f"{table.name}.{key.parent.name}"
