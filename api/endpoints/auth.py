"""`/v1/auth`: register, log in, and keep a login going by a rotating cookie."""

from datetime import timedelta
from uuid import UUID

from flask import Blueprint, Response, jsonify, make_response, request
from marshmallow import ValidationError, fields, validate, validates_schema

from arkloop.api.auth import access_tokens
from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.auth.password_attempts import password_attempts
from arkloop.api.endpoints.account_types import RegisteredUser, Tokens
from arkloop.api.http.audited import record, record_failed_login, record_login, record_logout
from arkloop.api.http.current import (
    actor,
    connections,
    connections_of_service,
    public_path,
    settings,
)
from arkloop.api.http.described import Ok, described
from arkloop.api.http.fields import Id
from arkloop.api.http.idempotency import refuse_key
from arkloop.api.http.json_body import NoArguments, read_body, read_object
from arkloop.api.http.schema import Schema
from arkloop.shared.accounts import accounts, credentials, invitations, sessions
from arkloop.shared.accounts.sessions import Session
from arkloop.shared.billing import credits
from arkloop.shared.errors import (
    AlreadyMember,
    Forbidden,
    InvalidRequest,
    InvitationInvalid,
    LoginTaken,
    OrgSuspended,
    TooManyAttempts,
    Unauthorized,
)
from arkloop.shared.security import passwords

COOKIE = "arkloop_refresh_token"
COOKIE_PATH = "/v1/auth"
#: It may be older than the rule for new ones.
_A_PASSWORD = validate.Length(1, accounts.MAX_PASSWORD_LENGTH)

bp = Blueprint("auth", __name__)
bp.before_request(refuse_key)


def check_password(password: str) -> None:
    """Check a new password, as a field's validator."""
    if why := accounts.problem_of_password(password):
        raise ValidationError(why)


def _invitation() -> fields.String:
    return fields.String(load_default=None, validate=validate.Length(1, 200))


class Register(Schema):
    login = fields.String(required=True)
    email = fields.String(required=True)
    password = fields.String(required=True, validate=check_password)
    invitation = _invitation()

    @validates_schema
    def check_names(self, data: dict[str, str], **_: object) -> None:
        if problems := accounts.problems_of(login=data["login"], email=data["email"]):
            raise ValidationError({name: [why] for name, why in problems.items()})


class Login(Schema):
    login = fields.String(required=True, validate=validate.Length(1, accounts.MAX_NAME_LENGTH))
    password = fields.String(required=True, validate=_A_PASSWORD)
    org_id = Id(load_default=None)
    invitation = _invitation()

    @validates_schema
    def check_org(self, data: dict[str, object], **_: object) -> None:
        if data["org_id"] is not None and data["invitation"] is not None:
            raise ValidationError({"org_id": ["cannot be given with an invitation"]})


class ChangePassword(Schema):
    current = fields.String(required=True, validate=_A_PASSWORD)
    new = fields.String(required=True, validate=check_password)


@bp.post("/v1/auth/register")
@described(
    body=Register,
    returns=RegisteredUser,
    status=201,
    raises=[LoginTaken, InvitationInvalid, OrgSuspended],
)
def register() -> Response:
    """Make a user and an org of their own, or with an invitation a member of its org.

    Without an invitation 403 where registration is closed.
    """
    if not settings().registration_open and not (read_object() or {}).get("invitation"):
        raise Forbidden(
            "Registration is closed; ask for an invitation, or an operator for"
            " `arkloop users create`."
        )
    body = read_body(Register())
    invitation = body["invitation"]
    if invitation is not None:
        with connections().reading() as sql:
            invitations.check(sql, invitation)  # before the work of hashing a password
    password_hash = passwords.hash_(body["password"])
    with connections().transaction() as tx:
        user = {"login": body["login"], "email": body["email"], "password_hash": password_hash}
        if invitation is not None:
            user_id = accounts.create_user_without_org(tx, **user)
            org_id = invitations.accept(tx, invitation, user_id)
            record_login(tx, "member.joined", user_id=user_id, org_id=org_id)
        else:
            org_id = accounts.create_org(tx, body["login"])
            credits.open_prepaid(tx, org_id, settings().new_org_credits)
            user_id = accounts.create_user(tx, org_id=org_id, role="owner", **user)
        session = sessions.begin(tx, user_id=user_id, org_id=org_id)
        record_login(tx, "user.created", user_id=user_id, org_id=org_id)
        record_login(tx, "auth.logged_in", user_id=user_id, org_id=org_id)
    return make_response(_tokens(session, user_id=str(user_id)), 201)


@bp.post("/v1/auth/login")
@described(
    body=Login,
    returns=Tokens,
    raises=[Unauthorized, OrgSuspended, TooManyAttempts, InvitationInvalid, AlreadyMember],
)
def login() -> Response:
    """Log in: access token in the body, refresh token in the cookie. Unknown users take as long.

    The login is in the org `org_id`, by default the one that the user joined first, or in that of
    the invitation, which is accepted by it.
    """
    check_origin()
    body = read_body(Login())
    with connections().reading() as sql:
        user = accounts.find(sql, body["login"], in_org=body["org_id"])
        name = accounts.compared(sql, body["login"])
    password_attempts().count(name)
    if not passwords.verify(body["password"], user.password_hash if user else None) or not user:
        if user is not None and user.first_org_id is not None:
            # An attacker must not be able to choose an `org_id` that leaves no trace.
            record_failed_login(user_id=user.id, org_id=user.org_id or user.first_org_id)
        raise Unauthorized("Wrong login or password.")
    password_attempts().forget(name)
    with connections().transaction() as tx:
        accounts.hold_password(tx.sql, user.id, user.password_hash)
        org_id = user.org_id
        if body["invitation"] is not None:
            org_id = invitations.accept(tx, body["invitation"], user.id)
            record_login(tx, "member.joined", user_id=user.id, org_id=org_id)
        if org_id is None:
            raise Forbidden("You are not a member of this organization, or of none.")
        session = sessions.begin(tx, user_id=user.id, org_id=org_id)
        record_login(tx, "auth.logged_in", user_id=user.id, org_id=org_id)
    return _tokens(session)


@bp.post("/v1/auth/refresh")
@described(body=NoArguments, body_optional=True, returns=Tokens, security=["refresh_token"])
def refresh() -> Response:
    """Exchange the cookie for the next one and a new access token."""
    check_origin()
    read_body(NoArguments(), optional=True)
    with connections().transaction() as tx:
        session = sessions.refresh(tx, request.cookies.get(COOKIE, ""))
    if session is None:
        raise Unauthorized("Session expired; log in again.")
    return _tokens(session)


@bp.post("/v1/auth/logout")
@described(
    body=NoArguments,
    body_optional=True,
    returns=Ok,
    security=["token", "refresh_token"],
)
def logout() -> Response:
    """End this login, its refresh and access tokens. An API key has none to end.

    Without an access token it is the login of the cookie, even if the org is suspended.
    """
    # While an org is suspended, its access tokens are refused and not renewed: a person who leaves
    # a browser there ends their login by the cookie.
    is_by_token = "Authorization" in request.headers
    user_id, org_id, session_id = _login_of_token() if is_by_token else _login_of_cookie()
    check_origin()
    read_body(NoArguments(), optional=True)
    if session_id is not None:
        with connections().transaction() as tx:
            if sessions.end(tx, user_id=user_id, session_id=session_id):
                record_logout(tx, user_id=user_id, org_id=org_id, session_id=session_id)
        authenticator().forget()
    response = jsonify(ok=True)
    set_refresh_cookie(response, "", timedelta(0))
    return response


@requires()
def _login_of_token() -> tuple[UUID, UUID, UUID | None]:
    return actor().user_id, actor().org_id, actor().session_id


def _login_of_cookie() -> tuple[UUID, UUID, UUID]:
    with connections().reading() as sql:
        login = sessions.find(sql, request.cookies.get(COOKIE, ""))
    if login is None:
        raise Unauthorized()
    return login.user_id, login.org_id, login.id


@bp.post("/v1/auth/password")
@requires()
@described(body=ChangePassword, returns=Ok, raises=[TooManyAttempts])
def change_password() -> Response:
    """Set a new password, and end the user's other logins. Not for API keys."""
    session_id = actor().session_id
    if session_id is None:
        raise Forbidden("An API key cannot change a password.")
    body = read_body(ChangePassword())
    with connections().reading() as sql:
        user = accounts.profile(sql, actor().user_id, actor().org_id)
    password_attempts().count(user.id)
    if not passwords.verify(body["current"], user.password_hash):
        raise InvalidRequest(current=["is not your current password"])
    password_attempts().forget(user.id)
    password_hash = passwords.hash_(body["new"])
    # The user's logins in all their orgs end.
    with connections_of_service().transaction() as tx:
        accounts.hold_password(tx.sql, user.id, user.password_hash)
        credentials.permissions_now(tx.sql, actor())
        accounts.change_password(
            tx, user_id=user.id, password_hash=password_hash, keep_session=session_id
        )
        record(tx, "auth.password_changed", "user", user.id)
    authenticator().forget()
    return jsonify(ok=True)


def _tokens(session: Session, **more: str) -> Response:
    token = access_tokens.issue(
        settings(), user_id=session.user_id, org_id=session.org_id, session_id=session.id
    )
    response = jsonify({**more, "access_token": token, "token_type": "bearer"})
    set_refresh_cookie(response, session.refresh_token, sessions.REFRESH_LIFETIME)
    return response


def set_refresh_cookie(response: Response, refresh_token: str, lifetime: timedelta) -> None:
    response.set_cookie(
        COOKIE,
        refresh_token,
        path=public_path(COOKIE_PATH),
        max_age=lifetime,
        httponly=True,
        secure=settings().secure_cookies,
        samesite="Strict",
    )


def check_origin() -> None:
    """Refuse requests by browser pages of other origins. Raises: Forbidden."""
    origin = request.headers.get("Origin")
    if origin is None or origin in settings().cors_origins:
        return
    _, _, host = origin.partition("://")  # a malformed origin is a foreign one
    if not host or host != request.host:
        raise Forbidden("This origin is not allowed; see ARKLOOP_CORS_ORIGINS.")
