"""`/v1/personas`: those that come with the code, and those that the org publishes."""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any, ClassVar, NamedTuple

from flask import Blueprint, Response, jsonify
from marshmallow import INCLUDE, ValidationError, fields, validate
from sqlalchemy import Connection, Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints import catalog_types
from arkloop.api.endpoints.budgets import limits_shown
from arkloop.api.http.audited import record
from arkloop.api.http.current import actor, catalog, changes_catalog, connections
from arkloop.api.http.described import described
from arkloop.api.http.fields import CheckedLater
from arkloop.api.http.idempotency import created, idempotent
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import PageArgs, PageQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.shared.catalog import client_tools, output_schema, personas, published_personas
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import (
    InvalidRequest,
    NotFound,
    PersonaNotFound,
    PersonaPublished,
    RouteNotFound,
)
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import rfc3339

bp = Blueprint("personas", __name__)


class ByName(NamedTuple):
    """After this persona of a list in the order of `(key, version)`."""

    key: str
    version: str


def _of_id_form(text: str) -> None:
    if not personas.KEY.fullmatch(text):
        raise ValidationError(f"must match {personas.KEY.pattern}")


class PersonasQuery(PageQuery):
    newest = fields.String(validate=validate.OneOf(["true", "false"]), load_default="false")


class PublishPersona(Schema):
    """The other fields are those of `personas.Persona`, which `personas.read` checks."""

    class Meta:
        include: ClassVar[Mapping[str, CheckedLater]] = {
            name: CheckedLater(reader.json_schema) for name, reader in personas.FIELDS.items()
        }

    key = fields.String(required=True, validate=_of_id_form)
    version = fields.String(allow_none=True, load_default=None, validate=_of_id_form)


@bp.post("/v1/personas")
@requires("admin")
@changes_catalog
@idempotent
@described(
    body=PublishPersona,
    returns=catalog_types.Persona,
    status=201,
    raises=[PersonaPublished, RouteNotFound],
)
def publish_persona(tx: Transaction) -> Response:
    """Publish a persona version, which never changes afterwards; responds 201."""
    # `personas.read` reports unknown fields together with all else that is wrong.
    definition = read_body(PublishPersona(unknown=INCLUDE))
    key, version = definition.pop("key"), definition.pop("version")
    definition = {name: value for name, value in definition.items() if value is not None}
    try:
        persona = personas.read(key, version or "", definition)
    except personas.InvalidPersona as error:
        raise InvalidRequest(**error.problems) from None
    try:
        client_tools.check_new(persona.client_tools)
    except ValueError as error:
        raise InvalidRequest(client_tools=[str(error)]) from None
    if persona.output_schema is not None:
        try:
            output_schema.check_new(persona.output_schema)
        except ValueError as error:
            raise InvalidRequest(output_schema=[str(error)]) from None
    _check_routes(tx, persona)
    row = published_personas.publish(tx, actor(), key, version, definition)
    record(tx, "persona.published", "persona", f"{row.key}@{row.version}")
    return created(_shown_row(row), location=f"/v1/personas/{row.key}@{row.version}")


@bp.get("/v1/personas")
@requires("data.runs.read")
@described(query=PersonasQuery, returns=list[catalog_types.Persona])
def list_personas() -> Response:
    """List personas by key and version, built-in ones and the org's; or the newest of each key."""
    args = page_args(ByName, PersonasQuery())
    read = _newest_page if args.filters["newest"] == "true" else _page
    with connections().reading() as sql:
        rows = read(sql, args)
    return page(
        rows,
        args,
        show=lambda found: _shown(found) if isinstance(found, Persona) else _shown_row(found),
        cursor_of=_name,
    )


@bp.get("/v1/personas/<persona_id>")
@requires("data.runs.read")
@described(returns=catalog_types.Persona)
def get_persona(persona_id: str) -> Response:
    """Show a persona; without a version, the newest."""
    query_args(NoArguments())
    if not personas.PERSONA_ID.fullmatch(persona_id):
        raise InvalidRequest(persona_id=[f"must match {personas.PERSONA_ID.pattern}"])
    org_id = actor().org_id
    key, _, version = persona_id.partition("@")
    with connections().reading() as sql:
        row = published_personas.find(sql, org_id, key, version)
        if row is None:
            try:
                persona = catalog().persona(org_id, persona_id, sql=sql)
            except PersonaNotFound as error:
                raise NotFound("Persona not found.", **error.details) from None
            row = published_personas.find(sql, org_id, persona.key, persona.version)
    return jsonify(_shown(persona) if row is None else _shown_row(row))


def _page(sql: Connection, args: PageArgs[ByName]) -> list[Persona | Row[Any]]:
    own = published_personas.list_(sql, actor().org_id, limit=args.limit + 1, after=args.before)
    rows: dict[ByName, Persona | Row[Any]] = {
        name: persona
        for name, persona in _builtin().items()
        if args.before is None or name > args.before
    }
    rows |= {_name(row): row for row in own}
    return [rows[name] for name in sorted(rows)][: args.limit + 1]


def _newest_page(sql: Connection, args: PageArgs[ByName]) -> list[Persona | Row[Any]]:
    """Read the versions that runs get which name none, without reading the others."""
    newest, _ = published_personas.overview(sql, actor().org_id)
    versions = {key: {version} for key, version in newest.items()}
    for key, version in _builtin():
        versions.setdefault(key, set()).add(version)
    # By keys alone: the newest version may have been published since the page before.
    names = [
        ByName(key, personas.newest(versions[key]))
        for key in sorted(versions)
        if args.before is None or key > args.before.key
    ][: args.limit + 1]
    own = [name for name in names if newest.get(name.key) == name.version]
    found = published_personas.list_(sql, actor().org_id, limit=args.limit + 1, among=own)
    rows: dict[ByName, Persona | Row[Any]] = {**_builtin(), **{_name(row): row for row in found}}
    # The page is full before those that were too long for it.
    return [rows[name] for name in takewhile(rows.__contains__, names)]


def _builtin() -> dict[ByName, Persona]:
    return {_name(persona): persona for persona in personas.builtin().values()}


def _check_routes(tx: Transaction, persona: Persona) -> None:
    named = {
        "route_id": [persona.route_id] if persona.route_id else [],
        "fallback_route_ids": persona.fallback_route_ids,
    }
    problems = {
        field: [
            f"Route {id_!r} not found."
            for id_ in ids
            if catalog().route(actor().org_id, id_, sql=tx.sql) is None
        ]
        for field, ids in named.items()
    }
    if missing := {field: why for field, why in problems.items() if why}:
        raise RouteNotFound(**missing)


def _name(persona: Persona | Row[Any]) -> ByName:
    return ByName(persona.key, persona.version)


def _shown_row(row: Row[Any]) -> dict[str, Any]:
    """Render a published persona; one with `problems` is unusable here, and incomplete."""
    definition = personas.from_stored(row.definition)
    persona, problems = personas.understood(row.key, row.version, definition)
    shown = {
        **_shown(persona),
        "source": "org",
        "created_by_user_id": str(row.created_by_user_id),
        "created_at": rfc3339(row.created_at),
    }
    return {**shown, "problems": problems} if problems else shown


def _shown(persona: Persona) -> dict[str, Any]:
    return {
        "id": persona.id,
        "key": persona.key,
        "version": persona.version,
        "source": "builtin",
        "agent": persona.agent,
        "system_prompt": persona.system_prompt,
        "route_id": persona.route_id,
        "fallback_route_ids": list(persona.fallback_route_ids),
        "tools": list(persona.tools),
        "client_tools": client_tools.shown(persona.client_tools),
        "mcp": list(persona.mcp),
        "mcp_tool_search": persona.mcp_tool_search,
        "tool_workers": list(persona.tool_workers),
        "require_approval": sorted(persona.require_approval),
        "approved_by": persona.approved_by,
        "delegates": persona.delegates,
        "max_depth": persona.max_depth,
        "max_active_children": persona.max_active_children,
        "max_steps": persona.max_steps,
        "max_equal_turns": persona.max_equal_turns,
        "max_output_tokens": persona.max_output_tokens,
        "model_settings": persona.model_settings,
        "max_result_tokens": persona.max_result_tokens,
        "compaction": persona.compaction,
        **limits_shown(persona),
        "timeout_seconds": persona.timeout_seconds,
        "input_expires_seconds": persona.input_expires_seconds,
        "on_input_expired": persona.on_input_expired,
        "stream_tool_arguments": persona.stream_tool_arguments,
        "output_schema": persona.output_schema,
        "overrides": list(persona.overrides),
        "on_limit": persona.on_limit,
        "created_by_user_id": None,
        "created_at": None,
    }
