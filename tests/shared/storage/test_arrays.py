"""Strings that go to Postgres in its binary format."""

import pytest

from arkloop.shared.storage.arrays import TextArray
from arkloop.shared.storage.connections import Connections


@pytest.mark.parametrize(
    "values",
    [
        [],
        [None],
        [""],
        ["one"],
        ["two", None, "words"],
        ['"quoted"', "back\\slash", "{braces}", "a,b", "NULL", " spaces ", "line\nfeed"],
        ["ä€😀", "\x01"],
    ],
)
def test_postgres_reads_every_string_as_it_was(
    connections: Connections, values: list[str | None]
) -> None:
    """No character has a meaning of its own in an array of strings."""
    with connections.reading() as sql:
        [row] = sql.exec_driver_sql(
            "SELECT %(values)s::text[], array_length(%(values)s::text[], 1)",
            {"values": TextArray(values)},
        ).all()
    assert (values, len(values) or None) == tuple(row)


def test_every_array_has_the_same_type(connections: Connections) -> None:
    """A statement is prepared once, whether an array is empty, has NULLs only, or strings."""
    with connections.reading() as sql:
        types = {
            sql.exec_driver_sql("SELECT pg_typeof(%(a)s)::text", {"a": TextArray(a)}).scalar()
            for a in ([], [None], ["one"])
        }
    assert {"text[]"} == types
