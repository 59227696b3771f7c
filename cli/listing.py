"""Rows and records on standard output: a table on a terminal, tab-separated in a pipe."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from arkloop.cli.output import compact, print_json, print_line, printable

#: Stands for a value that is not there, so that every line of a pipe has every column.
NOTHING = "-"
MAX_WIDTH = 10_000


def print_rows(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Print these fields of each row, on a terminal below a header and cut to its width."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in cells:
            print_line("\t".join(line))
        return
    table = Table(*(column.removeprefix("total_") for column in columns), box=None, pad_edge=False)
    for line in cells:
        table.add_row(*map(Text, line))
    console = Console()
    # At its full width the console cuts each line; to fit, rich would cut every cell, ids too.
    table.width = console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum
    console.print(table)


def print_fields(*values: Any) -> None:
    """Print one row, whole and without a header: in a pipe as `print_rows` does."""
    print_line(("  " if sys.stdout.isatty() else "\t").join(map(_cell, values)))


def print_record(record: Mapping[str, Any]) -> None:
    """Print every field of an object, one per line: its name, then its value."""
    width = max(map(len, record), default=0) if sys.stdout.isatty() else 0
    for name, value in record.items():
        gap = " " * (width - len(name) + 2) if width else "\t"
        print_line(f"{name}{gap}{_cell(value)}")


def print_explanation(found: Mapping[str, Any], as_json: bool) -> None:
    """Print why a run is where it is: a sentence, then what is behind it, one field per line."""
    if as_json:
        print_json(found)
        return
    print_line(found["sentence"])
    fields = {name: found[name] for name in found if name not in ("sentence", "details")}
    print_record(found["details"] | fields)


def _cell(value: Any) -> str:
    """Render the value on one line; spaces replace the line breaks and tabs of a text."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, float):
        return f"{value:.8f}".rstrip("0").rstrip(".")
    if not isinstance(value, str):
        value = compact(value)
    return " ".join(printable(value).split())
