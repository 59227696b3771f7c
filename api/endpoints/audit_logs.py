"""`/v1/audit-logs`: what was done in the org, and the head of its chain of hashes."""

from typing import Annotated, Any, Literal, TypedDict

from flask import Blueprint, Response, jsonify
from marshmallow import fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import Json, JsonObject, Time, UuidText, described
from arkloop.api.http.fields import Id
from arkloop.api.http.json_body import NoArguments, query_args
from arkloop.api.http.paging import ByPosition, PageQuery, page, page_args
from arkloop.shared.audit import audit_log, chain

Sha256 = Annotated[str, Json(pattern="^[0-9a-f]{64}$")]

bp = Blueprint("audit_logs", __name__)


class AuditQuery(PageQuery):
    action = fields.String(validate=validate.OneOf(audit_log.ACTIONS))
    actor_user_id = Id()


class AuditActor(TypedDict):
    """The one who acted; of an end user, with the user and key that issued their token."""

    type: Literal["user", "api_key", "end_user", "operator", "unknown"]
    user_id: UuidText | None
    api_key_id: UuidText | None
    end_user_id: str | None


class AuditTarget(TypedDict):
    """The object of an action."""

    type: str
    id: str


class AuditEntry(TypedDict):
    """An entry; `hash` is the SHA-256 of the canonical JSON of all its other fields."""

    org_id: UuidText
    seq: int
    created_at: Time
    action: str
    actor: AuditActor
    target: AuditTarget | None
    details: JsonObject
    ip: str | None
    user_agent: str | None
    prev_hash: Sha256
    hash: Sha256


class AuditHead(TypedDict):
    """The newest entry of an org's chain; `seq` is 0 if it has none."""

    org_id: UuidText
    seq: int
    hash: Sha256


@bp.get("/v1/audit-logs")
@requires("admin")
@described(query=AuditQuery, returns=list[AuditEntry])
def list_audit_logs() -> Response:
    """List the org's audit log, newest first."""
    args = page_args(ByPosition, AuditQuery())
    before = None if args.before is None else args.before.position
    with connections().reading() as sql:
        rows = audit_log.list_(
            sql, actor().org_id, args.filters, limit=args.limit + 1, before=before
        )
    return page(rows, args, show=_shown, cursor_of=lambda row: ByPosition(row.seq))


@bp.get("/v1/audit-logs/head")
@requires("admin")
@described(returns=AuditHead)
def get_audit_head() -> Response:
    """Show the head of the org's chain, for somebody else to keep."""
    query_args(NoArguments())
    with connections().reading() as sql:
        head = audit_log.head(sql, actor().org_id)
    return jsonify({"org_id": str(actor().org_id), **head._asdict()})


def _shown(row: Row[Any]) -> dict[str, Any]:
    return {**chain.contents(row), "hash": row.hash}
