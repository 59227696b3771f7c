"""Rows and records on standard output: a table on a terminal, tab-separated in a pipe, or JSON."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.display import printable

#: Stands for a value that is not there, so that every line of a pipe has every column.
NOTHING = "-"


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """These fields of each row; in a pipe one line a row, without a header."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in cells:
            click.echo("\t".join(line))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # An id is copied whole or not at all; all else may be cut to the terminal's width.
        is_id = column == "id" or column.endswith("_id")
        table.add_column(column, overflow="fold" if is_id else "ellipsis", no_wrap=not is_id)
        if is_id:
            table.columns[-1].min_width = max(
                (len(line[len(table.columns) - 1]) for line in cells), default=0
            )
    for line in cells:
        table.add_row(*(Text(text) for text in line))
    Console(highlight=False).print(table)


def print_record(record: Mapping[str, Any]) -> None:
    """Every field of one object, one a line: its name, then its value."""
    width = max(map(len, record), default=0) if sys.stdout.isatty() else 0
    for name, value in record.items():
        gap = " " * (width - len(name) + 2) if width else "\t"
        click.echo(f"{name}{gap}{_cell(value)}")


def _cell(value: Any) -> str:
    """The value on one line; what was text with line breaks or tabs has spaces there."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, float):
        return f"{value:.8f}".rstrip("0").rstrip(".")
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return " ".join(printable(value).split())
