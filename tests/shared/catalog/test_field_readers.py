"""The JSON Schemas of a persona's fields, compared with what reads the fields."""

from dataclasses import fields
from typing import Any

import jsonschema_rs
import pytest

from arkloop.shared.catalog import model_settings, personas
from arkloop.shared.catalog.field_readers import FieldReader
from arkloop.shared.catalog.personas import Persona

TOOL = {"name": "locate", "description": "Locates.", "parameters": {"type": "object"}}
#: Values of every form, at and beyond the bounds of the fields.
NUMBERS = [-1, 0, 0.5, 1, 1.5, 2, 5, 6, 8, 9, 255, 256, 257, 1_000_000, 1_000_001, 86_400, 86_401]
NUMBERS += [2_592_000, 2_592_001, 2**63, -(2**63)]
TEXTS = ["", "a", "a b", "a@1", "@", "*", "a" * 65, "a" * 32, "a" * 33, "a" * 65_537]
TEXTS += ["truncate", "fail", "answer", "org", "auto", "high", "max", "tools"]
LISTS = [[], ["a"], ["*"], ["a@1"], [1], [None], ["tools"], ["fail"], [f"a{n}" for n in range(257)]]
TOOLS = [[{**TOOL, "client": True}], [{**TOOL, "client": True, "idempotent": None}], [TOOL]]
TOOLS += [[{**TOOL, "client": True, "timeout_seconds": n}] for n in (0, 1, 2_592_000, 2_592_001)]
SETTINGS = [{"temperature": n} for n in (None, 0, 2, 2.5)] + [{"stop": ["a"] * n} for n in (1, 5)]
SETTINGS += [{"tool_choice": one} for one in ("auto", "all", {"name": "a"}, {"name": ""}, {})]
SETTINGS += [{"seed": 1.5}, {"stop": ""}, {"heat": 1}, {"extra_body": {"top_k": 1}}, {}]
VALUES = [True, *NUMBERS, *TEXTS, *LISTS, *TOOLS, *SETTINGS, {"type": "object"}]
#: Fields of which a JSON Schema says all that is read.
EXACT = {*personas.FIELDS} - {"client_tools", "model_settings", "output_schema"}


def accepts(reader: FieldReader, value: Any) -> bool:
    """Return whether the field can have the value."""
    try:
        reader.read(value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(personas.FIELDS))
def test_what_a_reader_accepts_fits_its_schema(name: str) -> None:
    """Nothing else does, where a JSON Schema can say it."""
    reader = personas.FIELDS[name]
    schema = jsonschema_rs.Draft202012Validator(dict(reader.json_schema))

    read = [accepts(reader, value) for value in VALUES]
    fits = [schema.is_valid(value) for value in VALUES]

    assert any(read) and not all(fits)
    wrong = [v for v, is_read, is_fit in zip(VALUES, read, fits, strict=True) if is_read > is_fit]
    assert [] == wrong
    assert name not in EXACT or fits == read


def test_a_persona_has_exactly_the_fields_that_are_read() -> None:
    """Besides its key and version, which make its id."""
    assert {field.name for field in fields(Persona)} == {"key", "version", *personas.FIELDS}


def test_the_schema_of_model_settings_has_every_setting() -> None:
    """Every name is there, and no other is allowed."""
    schema = model_settings.FIELD.json_schema

    assert model_settings.NAMES == schema["properties"].keys()
    assert schema["additionalProperties"] is False
