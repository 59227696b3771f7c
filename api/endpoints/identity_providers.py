"""`/v1/orgs/{org_id}/identity-provider`: what the people of an org log in by, besides passwords.

Chosen by an owner with an access token: to choose it is to decide who somebody is.
"""

import re
from typing import Any, Literal, TypedDict
from uuid import UUID

from flask import Blueprint, Response, jsonify
from marshmallow import ValidationError, fields, validate
from sqlalchemy import Row

from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.auth.id_tokens import ALGORITHMS
from arkloop.api.auth.provider_documents import provider_documents
from arkloop.api.endpoints.members import check_login, check_manages
from arkloop.api.http.audited import record
from arkloop.api.http.current import actor, connections, settings
from arkloop.api.http.described import Time, UuidText, described
from arkloop.api.http.fields import BoundedList, StrictBoolean
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.schema import Schema
from arkloop.shared.accounts import identity_providers
from arkloop.shared.accounts.identity_errors import (
    IdentityProviderNotFound,
    IdentityProviderUnavailable,
    NoOwnerWithPassword,
)
from arkloop.shared.errors import Forbidden, InvalidRequest
from arkloop.shared.times import rfc3339

bp = Blueprint("identity_providers", __name__)

#: Hours; the longest is 30 days.
DEFAULT_SESSION_HOURS, MAX_SESSION_HOURS = 12, 720
MAX_DOMAINS = 50

_DOMAIN = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}")
_PRINTABLE = validate.Regexp(
    r"\A[\x21-\x7e]{1,1000}\Z", error="must be 1 to 1000 printable ASCII characters, without spaces"
)
_SECRET = "client_secret"  # noqa: S105 - the name of a field


class IdentityProvider(TypedDict):
    """The identity provider of an org, without the client secret."""

    org_id: UuidText
    issuer: str
    client_id: str
    has_client_secret: bool
    signing_algorithm: str
    email_domains: list[str]
    joining_role: Literal["member", "admin"]
    assumes_verified_email: bool
    session_hours: int
    redirect_uri: str
    created_at: Time
    updated_at: Time


def check_domain(domain: str) -> None:
    """Check a part of addresses after the `@`, as a field's validator."""
    if not _DOMAIN.fullmatch(domain):
        raise ValidationError("must be a domain in lower case, example.com for instance")


def check_issuer(issuer: str) -> None:
    """Check the form of an issuer (OpenID Connect Core 1.0, 2), as a field's validator."""
    if not re.fullmatch(r"https?://[\x21-\x7e]{1,500}", issuer) or re.search(r"[?#]", issuer):
        raise ValidationError("must be an https:// address without `?` and `#`")


class SetIdentityProvider(Schema):
    issuer = fields.String(required=True, validate=check_issuer)
    client_id = fields.String(required=True, validate=_PRINTABLE)
    client_secret = fields.String(allow_none=True, validate=_PRINTABLE)
    signing_algorithm = fields.String(load_default="RS256", validate=validate.OneOf(ALGORITHMS))
    email_domains = BoundedList(
        fields.String(validate=check_domain), most=MAX_DOMAINS, load_default=list
    )
    joining_role = fields.String(
        load_default="member", validate=validate.OneOf(identity_providers.JOINING_ROLES)
    )
    assumes_verified_email = StrictBoolean(load_default=False)
    session_hours = fields.Integer(
        strict=True,
        load_default=DEFAULT_SESSION_HOURS,
        validate=validate.Range(1, MAX_SESSION_HOURS),
    )


@bp.get("/v1/orgs/<id:org_id>/identity-provider")
@requires()
@described(returns=IdentityProvider, raises=[IdentityProviderNotFound])
def get_identity_provider(org_id: UUID) -> Response:
    """Show the identity provider of the org."""
    query_args(NoArguments())
    check_manages(org_id)
    with connections().reading() as sql:
        return jsonify(_shown(identity_providers.get(sql, org_id)))


@bp.put("/v1/orgs/<id:org_id>/identity-provider")
@requires()
@described(body=SetIdentityProvider, returns=IdentityProvider, raises=[NoOwnerWithPassword])
def set_identity_provider(org_id: UUID) -> Response:
    """Set the identity provider of the org, all of it but the client secret, which stays.

    Its discovery document is read. For owners only. With another issuer or client an owner must
    have a password.
    """
    query_args(NoArguments())
    _check_owns(org_id)
    body = read_body(SetIdentityProvider())
    secret = {_SECRET: body.pop(_SECRET)} if _SECRET in body else {}
    _check_published(body["issuer"], body["signing_algorithm"])
    with connections().transaction() as tx:
        row = identity_providers.put(tx, actor(), values=body, secret=secret)
        names = sorted({*body, *secret})
        record(tx, "identity_provider.changed", "identity_provider", row.id, fields=names)
    authenticator().forget()
    return jsonify(_shown(row))


@bp.delete("/v1/orgs/<id:org_id>/identity-provider")
@requires()
@described(status=204, raises=[IdentityProviderNotFound, NoOwnerWithPassword])
def remove_identity_provider(org_id: UUID) -> Response:
    """Remove the identity provider; logins by it end within 5 s. For owners only. 204.

    An owner must have a password.
    """
    query_args(NoArguments())
    _check_owns(org_id)
    with connections().transaction() as tx:
        removed = identity_providers.remove(tx, actor())
        record(tx, "identity_provider.removed", "identity_provider", removed)
    authenticator().forget()
    return Response(status=204)


def _check_owns(org_id: UUID) -> None:
    check_login(org_id)
    if actor().role != "owner":
        raise Forbidden("Only an owner can choose the identity provider.")


def _check_published(issuer: str, algorithm: str) -> None:
    """Check that people could log in. Raises: InvalidRequest: what the provider says is wrong."""
    try:
        metadata = provider_documents().metadata(issuer, is_new=True)
    except IdentityProviderUnavailable as error:
        raise InvalidRequest(issuer=[str(error)]) from None
    if metadata.algorithms and algorithm not in metadata.algorithms:
        supported = ", ".join(name for name in metadata.algorithms if name in ALGORITHMS)
        raise InvalidRequest(
            signing_algorithm=[f"is not one of those of the provider: {supported[:200]}"]
        )


def _shown(row: Row[Any]) -> IdentityProvider:
    return {
        "org_id": str(row.org_id),
        "issuer": row.issuer,
        "client_id": row.client_id,
        "has_client_secret": row.client_secret_encrypted is not None,
        "signing_algorithm": row.signing_algorithm,
        "email_domains": row.email_domains,
        "joining_role": row.joining_role,
        "assumes_verified_email": row.assumes_verified_email,
        "session_hours": row.session_hours,
        "redirect_uri": identity_providers.redirect_uri(settings(), row.own_url) or "",
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }
