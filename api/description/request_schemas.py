"""JSON Schema of what requests have in their bodies and queries, from the marshmallow schemas."""

from collections.abc import Mapping
from typing import Any, cast

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import fields

from arkloop.api.description.json_types import JsonSchema
from arkloop.api.http.described import BodySchema
from arkloop.api.http.fields import MetadataFilter
from arkloop.api.http.schema import Schema
from arkloop.shared.catalog.field_readers import nullable

VERSION = "3.1.1"


class RequestSchemas:
    """Converts marshmallow schemas; those of bodies become `components`."""

    def __init__(self) -> None:
        self._schemas: dict[str, type[Schema]] = {}
        plugin = MarshmallowPlugin(schema_name_resolver=self._name)
        self._spec = APISpec("", "", VERSION, plugins=[plugin])
        # Its methods have no types.
        self._converter = cast(Any, plugin.converter)
        for function in (_from_field, _from_validators, _ecma_pattern):
            self._converter.add_attribute_function(function)

    @property
    def components(self) -> dict[str, JsonSchema]:
        return dict(self._spec.components.schemas)

    def _name(self, schema: Any) -> str:
        """Return the name of a schema's class, after that of its module if another has it."""
        kind = schema if isinstance(schema, type) else type(schema)
        name: str = kind.__name__.lstrip("_")
        if self._schemas.setdefault(name, kind) is kind:
            return name
        return kind.__module__.rpartition(".")[2].title().replace("_", "") + name

    def body(self, schema: BodySchema) -> JsonSchema:
        """Return the JSON Schema of a body."""
        if isinstance(schema, Mapping):
            return dict(schema)
        found: JsonSchema = self._converter.resolve_nested_schema(schema)
        return found

    def query(self, schema: type[Schema]) -> list[dict[str, Any]]:
        """Return the parameters of a query."""
        found: list[dict[str, Any]] = self._converter.schema2parameters(schema, location="query")
        for parameter in found:
            if isinstance(schema().fields.get(parameter["name"]), MetadataFilter):
                # An object in this style is a parameter for each of its members.
                parameter |= {"style": "form", "explode": True}
        return found


def _from_field(_: object, field: fields.Field[Any], ret: JsonSchema) -> JsonSchema:
    """Add what the field says about itself."""
    schema: JsonSchema = getattr(field, "json_schema", {})
    if "type" not in ret and not schema and type(field).__module__.startswith("arkloop."):
        raise TypeError(f"{type(field).__name__} has no json_schema")
    if field.allow_none and ("type" in schema or "anyOf" in schema):
        return nullable(schema)
    return schema


def _from_validators(_: object, field: fields.Field[Any], **__: Any) -> JsonSchema:
    """Add what the validators say about themselves."""
    schema: JsonSchema = {}
    for validator in field.validators:
        schema |= getattr(validator, "json_schema", {})
    return schema


def _ecma_pattern(_: object, __: fields.Field[Any], ret: JsonSchema) -> JsonSchema:
    r"""Write the ends of a pattern as ECMA 262 does, which has no `\A` and `\Z`."""
    pattern = ret.get("pattern")
    if pattern is None:
        return {}
    return {"pattern": pattern.replace(r"\A", "^").replace(r"\Z", "$")}
