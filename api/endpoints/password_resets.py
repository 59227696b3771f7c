"""Resets of passwords: an admin makes a token for a member, and the member uses it."""

from typing import TypedDict
from uuid import UUID

from flask import Blueprint, Response, jsonify, make_response
from marshmallow import fields, validate

from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.auth.password_attempts import password_attempts
from arkloop.api.endpoints.auth import check_password
from arkloop.api.endpoints.members import check_manages
from arkloop.api.http.audited import record, record_login
from arkloop.api.http.current import actor, connections, connections_of_service
from arkloop.api.http.described import Ok, Time, described
from arkloop.api.http.idempotency import check_key, refuse_key
from arkloop.api.http.json_body import NoArguments, read_body
from arkloop.api.http.schema import Schema
from arkloop.shared.accounts import accounts, password_resets
from arkloop.shared.errors import PasswordResetInvalid
from arkloop.shared.security import passwords
from arkloop.shared.times import rfc3339

bp = Blueprint("password_resets", __name__)


class CreatedPasswordReset(TypedDict):
    """A reset with its token, which is shown only this once."""

    token: str
    expires_at: Time


class ResetPassword(Schema):
    token = fields.String(required=True, validate=validate.Length(1, 200))
    password = fields.String(required=True, validate=check_password)


@bp.post("/v1/orgs/<id:org_id>/members/<id:user_id>/password-reset")
@requires()
@described(
    body=NoArguments,
    body_optional=True,
    returns=CreatedPasswordReset,
    status=201,
    headers=["Idempotency-Key of a secret"],
)
def create_password_reset(org_id: UUID, user_id: UUID) -> Response:
    """Make a token with which a member chooses a new password; it replaces an earlier one.

    A request that is repeated with its `Idempotency-Key` gets a new token.
    """
    check_key()
    read_body(NoArguments(), optional=True)
    check_manages(org_id)
    # Whether the member is in other orgs, too, must be seen.
    with connections_of_service().transaction() as tx:
        token, expires_at = password_resets.create_for_member(tx, actor(), user_id)
        record(tx, "auth.password_reset_created", "user", user_id)
    return make_response(jsonify(token=token, expires_at=rfc3339(expires_at)), 201)


@bp.post("/v1/auth/password-reset")
@described(body=ResetPassword, returns=Ok, raises=[PasswordResetInvalid])
def reset_password() -> Response:
    """Set a new password by the token of a reset, and end all logins of the user."""
    refuse_key()
    body = read_body(ResetPassword())
    with connections().reading() as sql:
        password_resets.check(sql, body["token"])  # before the work of hashing a password
    password_hash = passwords.hash_(body["password"])
    with connections().transaction() as tx:
        user_id, login, email = password_resets.use(tx, body["token"], password_hash)
        for org in accounts.orgs_of(tx.sql, user_id):
            record_login(tx, "auth.password_reset", user_id=user_id, org_id=org.id)
        names = [accounts.compared(tx.sql, name) for name in (login, email)]
    authenticator().forget()
    password_attempts().forget(user_id)
    for name in names:
        password_attempts().forget(name)
    return jsonify(ok=True)
