"""Rows and records on standard output: a table on a terminal, tab-separated in a pipe."""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from cli.output import print_line, printable

#: Stands for a value that is not there, so that every line of a pipe has every column.
NOTHING = "-"


def print_rows(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """These fields of each row; a terminal gets a header too, and lines cut to its width."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in cells:
            print_line("\t".join(line))
        return
    header = [column.removeprefix("total_") for column in columns]
    widths = [max(map(cell_len, column)) for column in zip(header, *cells, strict=True)]
    screen = shutil.get_terminal_size().columns
    for number, line in enumerate([header, *cells]):
        padded = (set_cell_size(cell, width) for cell, width in zip(line, widths, strict=True))
        text = "  ".join(padded).rstrip()
        shown = text if cell_len(text) <= screen else f"{set_cell_size(text, screen - 1)}…"
        print_line(shown, bold=(number == 0) or None)


def print_record(record: Mapping[str, Any]) -> None:
    """Every field of one object, one a line: its name, then its value."""
    width = max(map(len, record), default=0) if sys.stdout.isatty() else 0
    for name, value in record.items():
        gap = " " * (width - len(name) + 2) if width else "\t"
        print_line(f"{name}{gap}{_cell(value)}")


def _cell(value: Any) -> str:
    """The value on one line; what was text with line breaks or tabs has spaces there."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, float):
        return f"{value:.8f}".rstrip("0").rstrip(".")
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return " ".join(printable(value).split())
