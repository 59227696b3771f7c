"""The options of `arkloop run` that change the run: its fields in the API."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--instructions", metavar="TEXT", help="Append this to the persona's prompt."),
    click.option(
        *("--var", "variables"),
        metavar="NAME=VALUE",
        multiple=True,
        help="Set a variable of the persona's prompt; may be repeated.",
    ),
    click.option(
        *("--setting", "model_settings"),
        metavar="NAME=VALUE",
        multiple=True,
        help="Set a model setting, such as temperature=0; may be repeated.",
    ),
    click.option(
        *("--schema", "output_schema"),
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Get an object that fits the JSON Schema in this file.",
    ),
    click.option(
        "--metadata",
        metavar="KEY=VALUE",
        multiple=True,
        help="Attach this to the run; may be repeated.",
    ),
)


def run_options(command: Command) -> Command:
    """Add the options to a command, which gets them for `fields_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def fields_of(
    *,
    instructions: str | None,
    variables: Iterable[str],
    model_settings: Iterable[str],
    output_schema: Path | None,
    metadata: Iterable[str],
) -> dict[str, Any]:
    """Return the fields of the request; those that are not given are left out.

    Raises:
        click.UsageError
    """
    fields = {
        "instructions": instructions,
        "variables": _pairs("--var", variables) or None,
        "model_settings": {
            name: _value(text) for name, text in _pairs("--setting", model_settings).items()
        }
        or None,
        "output_schema": output_schema and _schema(output_schema),
        "metadata": _pairs("--metadata", metadata) or None,
    }
    # Values that are empty, but given, are for the service to refuse.
    return {name: value for name, value in fields.items() if value is not None}


def _pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option} must have the form name=value: {text!r}.")
        if name in pairs:
            raise click.UsageError(f"{option} is given twice for {name!r}.")
        pairs[name] = value
    return pairs


def _value(text: str) -> Any:
    """Read a value as JSON; what is none is the text itself, as in `reasoning_effort=low`."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_bytes())
        if not isinstance(schema, dict):
            raise ValueError("not an object")  # null would stand for none
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--schema: {path}: {error}") from None
    return schema
