"""`/v1/orgs/{org_id}/members`: who is in an org, and in which role.

All changes require an access token: with a stolen API key nobody can lock out its owner, or let in
somebody who stays when the key is revoked.
"""

from typing import Any, Literal, TypedDict
from uuid import UUID

from flask import Blueprint, Response, jsonify
from marshmallow import fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.http.audited import record
from arkloop.api.http.current import actor, connections, connections_of_service
from arkloop.api.http.described import Time, UuidText, described
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.paging import ByTime, PageQuery, page, page_args
from arkloop.api.http.schema import Schema
from arkloop.shared.accounts import members
from arkloop.shared.errors import Forbidden, LastOwner, OrgNotFound
from arkloop.shared.times import rfc3339

bp = Blueprint("members", __name__)

Role = Literal["owner", "admin", "member"]


class Member(TypedDict):
    """A user in an org."""

    user_id: UuidText
    login: str
    email: str
    role: Role
    joined_at: Time


class ChangeMember(Schema):
    role = fields.String(required=True, validate=validate.OneOf(members.ROLES))


@bp.get("/v1/orgs/<id:org_id>/members")
@requires()
@described(query=PageQuery, returns=list[Member])
def list_members(org_id: UUID) -> Response:
    """List the members of the caller's org, the newest first. An API key needs `admin`."""
    args = page_args(ByTime)
    check_org(org_id)
    if actor().api_key_id is not None and "admin" not in actor().permissions:
        raise Forbidden("An API key needs the scope `admin` to list members.")
    with connections().reading() as sql:
        rows = members.list_(sql, org_id, limit=args.limit + 1, before=args.before)
    return page(rows, args, show=_shown, cursor_of=ByTime.of)


@bp.patch("/v1/orgs/<id:org_id>/members/<id:user_id>")
@requires()
@described(body=ChangeMember, returns=Member, raises=[LastOwner])
def change_member(org_id: UUID, user_id: UUID) -> Response:
    """Change a member's role. Only owners change owners, or make others owners."""
    role = read_body(ChangeMember())["role"]
    check_manages(org_id)
    with connections().transaction() as tx:
        row = members.change_role(tx, actor(), user_id, role)
        record(tx, "member.role_changed", "user", user_id, role=role)
    authenticator().forget()
    return jsonify(_shown(row))


@bp.delete("/v1/orgs/<id:org_id>/members/<id:user_id>")
@requires()
@described(status=204, raises=[LastOwner])
def remove_member(org_id: UUID, user_id: UUID) -> Response:
    """Remove a member, or leave the org: their access to it ends within 5 s. 204."""
    query_args(NoArguments())
    check_login(org_id)
    # What ends with it are logins of a person, who is no member any more by then.
    with connections_of_service().transaction() as tx:
        revoked = members.remove(tx, actor(), user_id)
        record(tx, "member.removed", "user", user_id)
        for key_id in revoked:
            record(tx, "api_key.revoked", "api_key", key_id)
    authenticator().forget()
    return Response(status=204)


def check_org(org_id: UUID) -> None:
    """Check that the request is about the caller's org. Raises: OrgNotFound."""
    if org_id != actor().org_id:
        raise OrgNotFound()


def check_login(org_id: UUID) -> None:
    """Check as `check_org` does, and that the request has an access token. Raises: Forbidden."""
    check_org(org_id)
    if actor().session_id is None:
        raise Forbidden("An API key cannot manage who is in the organization.")


def check_manages(org_id: UUID) -> None:
    """Check as `check_login` does, and for the permission `admin`. Raises: Forbidden."""
    check_login(org_id)
    actor().check_permits("admin")


def _shown(row: Row[Any]) -> Member:
    return {
        "user_id": str(row.id),
        "login": row.login,
        "email": row.email,
        "role": row.role,
        "joined_at": rfc3339(row.created_at),
    }
