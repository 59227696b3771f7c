"""The options of `arkloop run` that change the run, as fields of the request."""

from pathlib import Path
from typing import Any

import click
import pytest

from arkloop.cli.client.run_options import fields_of


def fields(**given: Any) -> dict[str, Any]:
    none = {"instructions": None, "output_schema": None}
    lists: dict[str, Any] = {"variables": (), "model_settings": (), "metadata": ()}
    return fields_of(**{**none, **lists, **given})


def test_what_is_not_given_is_left_out() -> None:
    """The persona's own settings count then."""
    assert {} == fields()


def test_what_is_given_and_empty_is_sent(tmp_path: Path) -> None:
    """The service says what is wrong with it: it must not pass for an option that is not given."""
    (tmp_path / "schema.json").write_text("{}")

    sent = fields(instructions="", output_schema=tmp_path / "schema.json")

    assert {"instructions": "", "output_schema": {}} == sent


@pytest.mark.parametrize("text", ["[]", "null", "0", '""', "{"])
def test_a_schema_is_an_object(text: str, tmp_path: Path) -> None:
    """The run would have text instead of an object otherwise."""
    path = tmp_path / "schema.json"
    path.write_text(text)

    with pytest.raises(click.UsageError, match="--schema: .*schema.json: "):
        fields(output_schema=path)
