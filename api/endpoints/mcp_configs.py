"""`/v1/mcp-configs`: an org's MCP servers, and the approval of their tools."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from flask import Blueprint, Response, jsonify, make_response
from marshmallow import ValidationError, fields, validate, validates_schema
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.catalog_types import McpConfig, McpTool
from arkloop.api.http.audited import record
from arkloop.api.http.current import actor, connections, settings
from arkloop.api.http.described import described
from arkloop.api.http.fields import BoundedList, ClientId, Id
from arkloop.api.http.idempotency import created, idempotent
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import ByTime, PageQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.api.http.secret_headers import SecretHeaders
from arkloop.shared.catalog import mcp_access, mcp_configs
from arkloop.shared.errors import InvalidRequest, McpToolChanged, McpToolNotFound, NameTaken
from arkloop.shared.runs import commands
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import rfc3339, rfc3339_or_none

bp = Blueprint("mcp_configs", __name__)

MAX_URL_CHARACTERS = 2_000
MAX_ARGUMENTS = 64
MAX_APPROVALS = 1_000
MAX_CLIENT_CHARACTERS = 1_000

#: It stands before the names of tools.
_NAME = validate.Regexp(
    r"\A[a-z0-9_-]{1,32}\Z", error="must be 1 to 32 of a to z, 0 to 9, underscore and dash"
)
_HASH = validate.Regexp(r"\A[0-9a-f]{64}\Z", error="must be 64 hexadecimal digits")

_NO_PAGES: Mapping[UUID, str] = {}
APPROVING = (McpToolNotFound, McpToolChanged)


class ByToolName(NamedTuple):
    """After this tool of a server's list."""

    name: str


class McpOAuth(Schema):
    """An empty object registers a client with the server's authorization server."""

    client_id = fields.String(validate=validate.Length(1, MAX_CLIENT_CHARACTERS))
    client_secret = fields.String(validate=validate.Length(1, MAX_CLIENT_CHARACTERS))

    @validates_schema
    def _check(self, data: dict[str, str], **_: Any) -> None:
        if "client_secret" in data and "client_id" not in data:
            raise ValidationError("is required with `client_secret`", "client_id")


class McpConfigChanges(Schema):
    """`headers` takes the place of all there were, and so does `oauth`; null removes them."""

    name = fields.String(validate=_NAME)
    url = fields.String(validate=validate.Length(1, MAX_URL_CHARACTERS))
    command = BoundedList(
        fields.String(validate=validate.Length(1, 4_000)), least=1, most=MAX_ARGUMENTS
    )
    headers = SecretHeaders(reserved=("last-event-id",), reserved_prefixes=("mcp-",))
    oauth = fields.Nested(McpOAuth, allow_none=True)


class CreateMcpConfig(McpConfigChanges):
    name = fields.String(required=True, validate=_NAME)
    transport = fields.String(
        load_default=mcp_configs.STREAMABLE_HTTP, validate=validate.OneOf(mcp_configs.TRANSPORTS)
    )


class GrantQuery(Schema):
    """The person whose access is meant: an end user, or a user."""

    end_user_id = ClientId()
    user_id = Id()


class ApproveTool(Schema):
    hash = fields.String(required=True, validate=_HASH)


class NamedHash(ApproveTool):
    name = fields.String(required=True, validate=validate.Length(1, 200))


class ApproveTools(Schema):
    tools = BoundedList(fields.Nested(NamedHash), required=True, least=1, most=MAX_APPROVALS)


# ---- servers -------------------------------------------------------------------------


@bp.post("/v1/mcp-configs")
@requires("admin")
@idempotent
@described(body=CreateMcpConfig, returns=McpConfig, status=201, raises=[NameTaken])
def create_mcp_config(tx: Transaction) -> Response:
    """Create a server; a worker lists its tools, which are approved with it. 201."""
    config = mcp_configs.create(tx, actor().org_id, **read_body(CreateMcpConfig()))
    record(tx, "mcp_config.created", "mcp_config", config.id)
    return created(_shown(config), location=f"/v1/mcp-configs/{config.id}")


@bp.get("/v1/mcp-configs")
@requires("admin")
@described(query=PageQuery, returns=list[McpConfig])
def list_mcp_configs() -> Response:
    """List servers, newest first."""
    args = page_args(ByTime)
    with connections().reading() as sql:
        rows = mcp_configs.list_(sql, actor().org_id, limit=args.limit + 1, before=args.before)
        pages = mcp_access.open_pages(sql, settings(), rows)
    show = partial(_shown, pages=pages)
    return page(rows, args, show=show, cursor_of=ByTime.of)


@bp.get("/v1/mcp-configs/<id:config_id>")
@requires("admin")
@described(returns=McpConfig)
def get_mcp_config(config_id: UUID) -> Response:
    """Show a server."""
    query_args(NoArguments())
    with connections().reading() as sql:
        config = mcp_configs.find(sql, actor().org_id, config_id)
        return jsonify(_shown(config, mcp_access.open_pages(sql, settings(), [config])))


@bp.patch("/v1/mcp-configs/<id:config_id>")
@requires("admin")
@described(body=McpConfigChanges, returns=McpConfig, raises=[NameTaken])
def change_mcp_config(config_id: UUID) -> Response:
    """Change a server; missing fields keep their values, and its tools are listed again."""
    body = read_body(McpConfigChanges())
    with connections().transaction() as tx:
        config, closed = mcp_configs.change(tx, actor().org_id, config_id, body)
        commands.answer_visits(tx, closed)
        record(tx, "mcp_config.changed", "mcp_config", config_id, fields=sorted(body))
    return jsonify(_shown(config))


@bp.delete("/v1/mcp-configs/<id:config_id>")
@requires("admin")
@described(status=204)
def delete_mcp_config(config_id: UUID) -> Response:
    """Delete a server; its tools are not called again, in active runs either. 204."""
    query_args(NoArguments())
    with connections().transaction() as tx:
        commands.answer_visits(tx, mcp_configs.remove(tx, actor().org_id, config_id))
        record(tx, "mcp_config.deleted", "mcp_config", config_id)
    return Response(status=204)


@bp.post("/v1/mcp-configs/<id:config_id>:discover")
@requires("admin")
@described(body=NoArguments, body_optional=True, returns=McpConfig, status=202)
@idempotent
def discover_mcp_tools(tx: Transaction, config_id: UUID) -> Response:
    """Have the tools listed; the result is there once `tried_at` is not null. 202."""
    read_body(NoArguments(), optional=True)
    mcp_configs.find(tx.sql, actor().org_id, config_id)
    mcp_configs.discover(tx, config_id)
    config = mcp_configs.find(tx.sql, actor().org_id, config_id)
    return make_response(jsonify(_shown(config)), 202)


@bp.delete("/v1/mcp-configs/<id:config_id>/grants")
@requires("admin")
@described(query=GrantQuery, status=204)
def delete_mcp_grants(config_id: UUID) -> Response:
    """Delete the access that an end user has granted, or a user for whom no end user works. 204."""
    given = query_args(GrantQuery())
    if len(given) != 1:
        raise InvalidRequest(end_user_id=["give either `end_user_id` or `user_id`"])
    with connections().transaction() as tx:
        mcp_configs.find(tx.sql, actor().org_id, config_id)
        owner = mcp_access.owner_of(given.get("end_user_id"), given.get("user_id"))
        closed = mcp_access.forget(tx, config_id, owner)
        commands.answer_visits(tx, closed)
        whose = {name: str(value) for name, value in given.items()}
        record(tx, "mcp_config.grants_deleted", "mcp_config", config_id, **whose)
    return Response(status=204)


# ---- tools ---------------------------------------------------------------------------


@bp.get("/v1/mcp-configs/<id:config_id>/tools")
@requires("admin")
@described(query=PageQuery, returns=list[McpTool])
def list_mcp_tools(config_id: UUID) -> Response:
    """List the known tools, by name."""
    args = page_args(ByToolName)
    with connections().reading() as sql:
        rows = mcp_configs.tools(
            sql,
            actor().org_id,
            config_id,
            limit=args.limit + 1,
            after_name=args.before.name if args.before else None,
        )
    return page(rows, args, show=_shown_tool, cursor_of=lambda row: ByToolName(row.name))


@bp.post("/v1/mcp-configs/<id:config_id>/tools/<name>:approve")
@requires("admin")
@described(body=ApproveTool, returns=McpTool, raises=APPROVING)
@idempotent
def approve_mcp_tool(tx: Transaction, config_id: UUID, name: str) -> Response:
    """Approve a tool with the description of this hash, and no other."""
    hash_ = read_body(ApproveTool())["hash"]
    [row] = mcp_configs.approve(tx, actor().org_id, config_id, {name: hash_})
    _record_approvals(tx, config_id, {name: hash_})
    return jsonify(_shown_tool(row))


@bp.post("/v1/mcp-configs/<id:config_id>/tools:approve")
@requires("admin")
@described(body=ApproveTools, returns=list[McpTool], raises=APPROVING)
@idempotent
def approve_mcp_tools(tx: Transaction, config_id: UUID) -> Response:
    """Approve several tools: all of them or none."""
    named = read_body(ApproveTools())["tools"]
    approvals = {tool["name"]: tool["hash"] for tool in named}
    rows = mcp_configs.approve(tx, actor().org_id, config_id, approvals)
    _record_approvals(tx, config_id, approvals)
    return jsonify([_shown_tool(row) for row in rows])


def _record_approvals(tx: Transaction, config_id: UUID, approvals: Mapping[str, str]) -> None:
    tools = [f"{hash_} {name}" for name, hash_ in approvals.items()]
    record(tx, "mcp_config.tools_approved", "mcp_config", config_id, tools=tools)


def _shown(row: Row[Any], pages: Mapping[UUID, str] = _NO_PAGES) -> dict[str, Any]:
    oauth = row.oauth and {
        **row.oauth,
        "has_client_secret": row.has_client_secret,
        "authorization_url": pages.get(row.id),
    }
    return {
        "id": str(row.id),
        "org_id": str(row.org_id),
        "name": row.name,
        "transport": row.transport,
        "url": row.url,
        "command": row.command,
        "header_names": row.header_names,
        "oauth": oauth,
        "tool_count": row.tool_count,
        "tried_at": rfc3339_or_none(row.tried_at),
        "discovered_at": rfc3339_or_none(row.discovered_at),
        "discovery_error": row.discovery_error,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def _shown_tool(row: Row[Any]) -> dict[str, Any]:
    is_approved = row.approved_hash == row.hash
    return {
        "name": row.name,
        "description": row.description,
        "parameters": row.parameters,
        "hash": row.hash,
        "is_approved": is_approved,
        "changed": row.approved_hash is not None and not is_approved,
        "is_present": row.is_present,
        "is_offered": row.is_offered,
        "problem": row.problem,
        "approved_at": rfc3339_or_none(row.approved_at),
        "seen_at": rfc3339(row.seen_at),
    }
