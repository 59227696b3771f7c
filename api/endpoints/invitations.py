"""`/v1/orgs/{org_id}/invitations`: let others into an org, each by a token that works once.

The token is accepted by `POST /v1/auth/register` or `POST /v1/auth/login`.
"""

from datetime import timedelta
from typing import Any, NotRequired, TypedDict
from uuid import UUID

from flask import Blueprint, Response
from marshmallow import fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.members import Role, check_manages
from arkloop.api.http.audited import record
from arkloop.api.http.current import actor, connections
from arkloop.api.http.described import Time, UuidText, described
from arkloop.api.http.idempotency import created, replayed_without
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import ByTime, PageQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.shared.accounts import invitations, members
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import rfc3339

bp = Blueprint("invitations", __name__)

#: Seconds.
MIN_LIFETIME, DEFAULT_LIFETIME, MAX_LIFETIME = 60, 7 * 86_400, 30 * 86_400


class Invitation(TypedDict):
    """An open invitation, without its token."""

    id: UuidText
    org_id: UuidText
    name: str
    role: Role
    created_by_user_id: UuidText
    created_at: Time
    expires_at: Time


class CreatedInvitation(Invitation):
    """A new invitation with its `token`, which a repeated request is not shown."""

    token: NotRequired[str]


class CreateInvitation(Schema):
    name = fields.String(required=True, validate=validate.Length(1, 200))
    role = fields.String(required=True, validate=validate.OneOf(members.ROLES))
    lifetime_seconds = fields.Integer(
        strict=True,
        load_default=DEFAULT_LIFETIME,
        validate=validate.Range(MIN_LIFETIME, MAX_LIFETIME),
    )


@bp.post("/v1/orgs/<id:org_id>/invitations")
@requires()
@replayed_without("token")
@described(body=CreateInvitation, returns=CreatedInvitation, status=201)
def create_invitation(tx: Transaction, org_id: UUID) -> Response:
    """Create an invitation; responds 201 with `token`, which is shown only this once."""
    body = read_body(CreateInvitation())
    check_manages(org_id)
    lifetime = timedelta(seconds=body["lifetime_seconds"])
    row, token = invitations.create(
        tx, actor(), name=body["name"], role=body["role"], lifetime=lifetime
    )
    record(tx, "invitation.created", "invitation", row.id, role=row.role)
    location = f"/v1/orgs/{org_id}/invitations/{row.id}"
    return created({**_shown(row), "token": token}, location=location)


@bp.get("/v1/orgs/<id:org_id>/invitations")
@requires()
@described(query=PageQuery, returns=list[Invitation])
def list_invitations(org_id: UUID) -> Response:
    """List the open invitations, the newest first: neither accepted, nor revoked, nor expired."""
    args = page_args(ByTime)
    check_manages(org_id)
    with connections().reading() as sql:
        rows = invitations.list_(sql, org_id, limit=args.limit + 1, before=args.before)
    return page(rows, args, show=_shown, cursor_of=ByTime.of)


@bp.delete("/v1/orgs/<id:org_id>/invitations/<id:invitation_id>")
@requires()
@described(status=204)
def revoke_invitation(org_id: UUID, invitation_id: UUID) -> Response:
    """Revoke an open invitation: nobody can accept it any more. 204."""
    query_args(NoArguments())
    check_manages(org_id)
    with connections().transaction() as tx:
        invitations.revoke(tx, org_id, invitation_id)
        record(tx, "invitation.revoked", "invitation", invitation_id)
    return Response(status=204)


def _shown(row: Row[Any]) -> Invitation:
    return {
        "id": str(row.id),
        "org_id": str(row.org_id),
        "name": row.name,
        "role": row.role,
        "created_by_user_id": str(row.created_by_user_id),
        "created_at": rfc3339(row.created_at),
        "expires_at": rfc3339(row.expires_at),
    }
