"""Standard output and error of the command line: nothing that is printed can steer a terminal.

Emails, titles, text of models and tools, and error messages come from other people. An escape
sequence in one of them could rewrite the screen, set the clipboard or fake a prompt. So every
command prints through this module: text by `printable`, JSON by `escaped`.
"""

import json
import re
import sys
from typing import Any

import click

#: Control characters but for tab and newline (C0, DEL, C1), marks and overrides of the writing
#: direction, and lone surrogates, which have no encoding.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Replace what would steer a terminal; carriage returns are left out."""
    return _UNSAFE.sub("\ufffd", text.replace("\r", ""))


def escaped(document: str) -> str:
    """Write the same characters of a JSON document as `\\uXXXX`: its value stays the same.

    In valid JSON they stand within strings alone; a carriage return between tokens is left out.
    """
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", document.replace("\r", ""))


def shortened(line: str, most: int) -> str:
    """Cut a line to `most` characters, of which the last then is an ellipsis."""
    return line if len(line) <= most else f"{line[: most - 1]}…"


def compact(value: Any) -> str:
    """Return a value as JSON without spaces between."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def print_line(text: object, *, err: bool = False) -> None:
    """Print a line of text."""
    click.echo(printable(str(text)), err=err)


def print_json(value: Any) -> None:
    """Print a value as JSON, indented."""
    click.echo(escaped(json.dumps(value, indent=2, ensure_ascii=False)))


def write(text: str) -> None:
    """Write text or lines to standard output at once, as UTF-8 in any locale."""
    _write(printable(text))


def write_json(document: str) -> None:
    """Write a JSON document, on a line of its own, as `write` does."""
    _write(escaped(document) + "\n")


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
