"""`/v1/tools`: an org's own tools, which runs call by HTTP."""

from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify
from marshmallow import fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.catalog_types import HttpTool, HttpToolWithSecret
from arkloop.api.http.audited import record
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import described
from arkloop.api.http.fields import Seconds, StrictBoolean, utf8_length
from arkloop.api.http.idempotency import created, replayed_without
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import ByTime, PageQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.api.http.secret_headers import SecretHeaders
from arkloop.shared.catalog import http_tools
from arkloop.shared.catalog.http_tools import MAX_OVERLAP_SECONDS, MAX_TIMEOUT_SECONDS
from arkloop.shared.errors import NameTaken
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import rfc3339, rfc3339_or_none

bp = Blueprint("tools", __name__)

MAX_URL_CHARACTERS = 2_000
MAX_DESCRIPTION_BYTES = 4_096
DEFAULT_OVERLAP_SECONDS = 86_400

_NAME = validate.Regexp(
    r"\A[A-Za-z0-9_-]{1,64}\Z", error="must be 1 to 64 letters, digits, underscores and dashes"
)


class ToolChanges(Schema):
    """`headers` takes the place of all there were; null removes them."""

    name = fields.String(validate=_NAME)
    description = fields.String(validate=utf8_length(1, MAX_DESCRIPTION_BYTES))
    parameters = fields.Dict()
    url = fields.String(validate=validate.Length(1, MAX_URL_CHARACTERS))
    idempotent = StrictBoolean()
    timeout_seconds = Seconds(1, MAX_TIMEOUT_SECONDS)
    headers = SecretHeaders(
        reserved=("idempotency-key", "traceparent", "tracestate", "user-agent"),
        reserved_prefixes=("arkloop-", "webhook-"),
    )


class CreateTool(ToolChanges):
    name = fields.String(required=True, validate=_NAME)
    description = fields.String(required=True, validate=utf8_length(1, MAX_DESCRIPTION_BYTES))
    parameters = fields.Dict(load_default=lambda: {"type": "object", "properties": {}})
    url = fields.String(required=True, validate=validate.Length(1, MAX_URL_CHARACTERS))
    idempotent = StrictBoolean(load_default=False)
    timeout_seconds = Seconds(1, MAX_TIMEOUT_SECONDS, load_default=http_tools.TIMEOUT_SECONDS)


class RotateSecret(Schema):
    overlap_seconds = Seconds(0, MAX_OVERLAP_SECONDS, load_default=DEFAULT_OVERLAP_SECONDS)


@bp.post("/v1/tools")
@requires("admin")
@replayed_without("signing_secret")
@described(body=CreateTool, returns=HttpToolWithSecret, status=201, raises=[NameTaken])
def create_tool(tx: Transaction) -> Response:
    """Create a tool; responds 201 with `signing_secret`, which is shown only this once."""
    row, secret = http_tools.create(tx, actor().org_id, **read_body(CreateTool()))
    record(tx, "http_tool.created", "http_tool", row.id)
    return created({**_shown(row), "signing_secret": secret}, location=f"/v1/tools/{row.id}")


@bp.get("/v1/tools")
@requires("admin")
@described(query=PageQuery, returns=list[HttpTool])
def list_tools() -> Response:
    """List tools, newest first."""
    args = page_args(ByTime)
    with connections().reading() as sql:
        rows = http_tools.list_(sql, actor().org_id, limit=args.limit + 1, before=args.before)
    return page(rows, args, show=_shown, cursor_of=ByTime.of)


@bp.get("/v1/tools/<id:tool_id>")
@requires("admin")
@described(returns=HttpTool)
def get_tool(tool_id: UUID) -> Response:
    """Show one tool."""
    query_args(NoArguments())
    with connections().reading() as sql:
        return jsonify(_shown(http_tools.find(sql, actor().org_id, tool_id)))


@bp.patch("/v1/tools/<id:tool_id>")
@requires("admin")
@described(body=ToolChanges, returns=HttpTool, raises=[NameTaken])
def change_tool(tool_id: UUID) -> Response:
    """Change a tool; fields that are missing in the body keep their values."""
    changes = read_body(ToolChanges())
    with connections().transaction() as tx:
        row = http_tools.change(tx, actor().org_id, tool_id, changes)
        record(tx, "http_tool.changed", "http_tool", tool_id, fields=sorted(changes))
    return jsonify(_shown(row))


@bp.delete("/v1/tools/<id:tool_id>")
@requires("admin")
@described(status=204)
def delete_tool(tool_id: UUID) -> Response:
    """Delete a tool: it is not called again. 204."""
    query_args(NoArguments())
    with connections().transaction() as tx:
        http_tools.remove(tx, actor().org_id, tool_id)
        record(tx, "http_tool.deleted", "http_tool", tool_id)
    return Response(status=204)


@bp.post("/v1/tools/<id:tool_id>:rotate-secret")
@requires("admin")
@replayed_without("signing_secret")
@described(body=RotateSecret, body_optional=True, returns=HttpToolWithSecret)
def rotate_tool_secret(tx: Transaction, tool_id: UUID) -> Response:
    """Replace the signing secret; the response has the new one, which is shown only this once."""
    overlap = read_body(RotateSecret(), optional=True)["overlap_seconds"]
    row, secret = http_tools.rotate(tx, actor().org_id, tool_id, overlap)
    record(tx, "http_tool.secret_rotated", "http_tool", tool_id)
    return jsonify({**_shown(row), "signing_secret": secret})


def _shown(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "org_id": str(row.org_id),
        "name": row.name,
        "description": row.description,
        "parameters": http_tools.parameters_of(row),
        "url": row.url,
        "idempotent": row.idempotent,
        "timeout_seconds": row.timeout_seconds,
        "header_names": row.header_names,
        "former_secret_until": rfc3339_or_none(row.former_secret_until),
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }
