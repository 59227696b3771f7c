"""`/v1/auth/oidc`: log in by the identity provider of an org (OpenID Connect)."""

import hmac
import re
from datetime import timedelta
from typing import Any, TypedDict
from urllib.parse import quote
from uuid import UUID

from flask import Blueprint, Response, jsonify, request
from marshmallow import EXCLUDE, fields, validate
from sqlalchemy import Row

from arkloop.api.auth import provider_logins
from arkloop.api.auth.bearer import authenticator, requires
from arkloop.api.auth.password_attempts import password_attempts
from arkloop.api.auth.provider_attempts import provider_attempts
from arkloop.api.auth.provider_documents import provider_documents
from arkloop.api.auth.provider_logins import PendingLogin, Reply
from arkloop.api.endpoints.auth import COOKIE_PATH, check_origin, set_refresh_cookie
from arkloop.api.http import denials, errors
from arkloop.api.http.audited import record_login, record_refused_login
from arkloop.api.http.client_address import client_address
from arkloop.api.http.current import (
    actor,
    connections,
    connections_of_service,
    public_path,
    settings,
)
from arkloop.api.http.described import Time, described
from arkloop.api.http.fields import Id
from arkloop.api.http.idempotency import refuse_key
from arkloop.api.http.json_body import query_args, read_body
from arkloop.api.http.schema import Schema
from arkloop.shared import origins
from arkloop.shared.accounts import (
    accounts,
    identities,
    identity_providers,
    sessions,
    suspensions,
)
from arkloop.shared.accounts.identities import Account, Known, Person
from arkloop.shared.accounts.identity_errors import (
    ClientRefused,
    ClientSecretUnreadable,
    IdentityProviderNotFound,
    IdentityProviderUnavailable,
    LinkRefused,
    LinkRequired,
    LoginRefused,
    LoginStateInvalid,
)
from arkloop.shared.accounts.sessions import Session
from arkloop.shared.errors import (
    AlreadyMember,
    ArkloopError,
    Forbidden,
    InvalidRequest,
    InvitationInvalid,
    LoginTaken,
    OrgSuspended,
    TooManyAttempts,
)
from arkloop.shared.security import passwords
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import rfc3339

bp = Blueprint("oidc", __name__)
bp.before_request(refuse_key)

COOKIE = "arkloop_oidc_login"
#: Of a login that links an account, where cookies are Secure. Other hosts of the domain can set the
#: one above, and so have another person complete a login that they began; by its name, not this.
LINK_COOKIE = "__Host-arkloop_oidc_link"
_PATH = COOKIE_PATH + "/oidc"

_MAX_CHARACTERS = 4_096
_MAX_RETURN_CHARACTERS = 1_000
_HTML = "text/html; charset=utf-8"
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>You are logged in.</title>
<p>You are logged in. You can close this window.
"""


class BeginLogin(Schema):
    org_id = Id(required=True)
    return_to = fields.String(validate=validate.Length(1, _MAX_RETURN_CHARACTERS))
    invitation = fields.String(validate=validate.Length(1, 200))


class LinkAccount(Schema):
    password = fields.String(
        required=True, validate=validate.Length(1, accounts.MAX_PASSWORD_LENGTH)
    )
    return_to = fields.String(validate=validate.Length(1, _MAX_RETURN_CHARACTERS))


class BegunLogin(TypedDict):
    """A login at the provider that waits for the person."""

    authorization_url: str
    expires_at: Time


class Callback(Schema):
    """The reply of a provider; what else it adds is ignored, as RFC 6749 demands."""

    class Meta:
        unknown = EXCLUDE

    state = fields.String(required=True, validate=validate.Length(1, 512))
    code = fields.String(validate=validate.Length(1, _MAX_CHARACTERS))
    error = fields.String(validate=validate.Length(1, _MAX_CHARACTERS))
    iss = fields.String(validate=validate.Length(1, _MAX_CHARACTERS))


@bp.post("/v1/auth/oidc/begin")
@described(
    body=BeginLogin,
    returns=BegunLogin,
    raises=[IdentityProviderNotFound, OrgSuspended, IdentityProviderUnavailable, TooManyAttempts],
)
def begin_provider_login() -> Response:
    """Begin a login by the identity provider of an org: send the person to `authorization_url`.

    The cookie of the response ties the login to this browser, for ten minutes.
    """
    provider_attempts().count(client_address())
    check_origin()
    body = read_body(BeginLogin())
    provider = _provider_of(body["org_id"])
    _check_return(provider, return_to := body.get("return_to"))
    return _begun(provider, return_to=return_to, invitation=body.get("invitation"))


@bp.post("/v1/auth/oidc/link")
@requires()
@described(
    body=LinkAccount,
    returns=BegunLogin,
    raises=[IdentityProviderNotFound, IdentityProviderUnavailable, TooManyAttempts],
)
def link_identity_provider() -> Response:
    """Begin a login by the identity provider of the token's org that links this user to the person.

    It requires the user's password: a stolen access token must not be enough. Not for API keys.
    """
    session_id = actor().session_id
    if session_id is None:
        raise Forbidden("An API key cannot link an identity provider.")
    provider_attempts().count(client_address())
    check_origin()
    body = read_body(LinkAccount())
    provider = _provider_of(actor().org_id)
    _check_return(provider, return_to := body.get("return_to"))
    with connections_of_service().reading() as sql:
        user = accounts.profile(sql, actor().user_id, actor().org_id)
    if user.password_hash == accounts.NO_PASSWORD:
        raise InvalidRequest(
            password=["is not set for this account: log in by the identity provider directly"]
        )
    password_attempts().count(user.id)
    if not passwords.verify(body["password"], user.password_hash):
        raise InvalidRequest(password=["is not your password"])
    password_attempts().forget(user.id)
    account = Account(user_id=user.id, session_id=session_id)
    return _begun(provider, return_to=return_to, account=account)


def _check_return(provider: Row[Any], return_to: str | None) -> None:
    if return_to is not None and not _may_return_to(provider, return_to):
        home = provider.own_url or "ARKLOOP_PUBLIC_URL"
        raise InvalidRequest(
            return_to=[f"must be an address below {home} or one of ARKLOOP_CORS_ORIGINS"]
        )


def _begun(provider: Row[Any], **login: Any) -> Response:
    """Begin a login, of which the browser keeps what it needs in the end."""
    metadata = provider_documents().metadata(provider.issuer, saved_at=provider.updated_at)
    redirect_uri = _redirect_uri(provider)
    pending, ends_at = provider_logins.begin(provider, redirect_uri=redirect_uri, **login)
    cookie = provider_logins.cookie_of(settings(), pending, ends_at)
    if len(cookie) > provider_logins.MAX_COOKIE_LENGTH:
        raise InvalidRequest(return_to=["is too long for a cookie"])
    url = provider_logins.authorization_url(metadata, provider, pending)
    response = jsonify(authorization_url=url, expires_at=rfc3339(ends_at))
    _set_cookie(response, cookie)
    if pending.user_id is not None:
        _set_link_cookie(response, pending.state)
    return response


@bp.get(identity_providers.CALLBACK_PATH)
@described(
    query=Callback,
    returns={"text/html": str},
    also={303: None},
    raises=[
        LoginStateInvalid,
        LoginRefused,
        LinkRequired,
        LinkRefused,
        ClientRefused,
        ClientSecretUnreadable,
        IdentityProviderUnavailable,
        InvitationInvalid,
        AlreadyMember,
        LoginTaken,
        OrgSuspended,
        TooManyAttempts,
    ],
)
def complete_provider_login() -> Response:
    """Take the reply of an identity provider, and log in the person whom it has identified.

    Sets the cookie with the refresh token. With `return_to` 303 to there, if the login has failed
    with the code of the error in `error`; else a short page. A browser whose reply belongs to no
    login of it is led back in the same way, to the console if nothing is known of its login.
    """
    provider_attempts().count(client_address())
    given = query_args(Callback())
    if ("code" in given) == ("error" in given):
        raise InvalidRequest(code=["is required, or `error`; not both"])
    if request.method == "HEAD":  # the reply is for one use, and its page comes with GET
        return Response(content_type=_HTML)
    reply = Reply(given["state"], given.get("code"), given.get("iss"), given.get("error"))
    cookie = request.cookies.get(COOKIE, "")
    pending: PendingLogin | None = None
    try:
        pending = provider_logins.begun_in(settings(), cookie)
        provider_logins.check_state(pending, reply)
        if pending.user_id is not None:
            _check_link_cookie(pending)
    except LoginStateInvalid as error:
        if not _is_page():
            raise
        # The cookie stays: it may be that of a login in another tab.
        back = None if pending is None else pending.return_to
        return _led_back(back or public_path("/console"), error)
    try:
        session = _log_in(pending, reply)
    except ArkloopError as error:
        if isinstance(error, LoginRefused):
            _record_refusal(pending, error)
        if pending.return_to is None:
            raise
        response = _led_back(pending.return_to, error)
    else:
        response = _sent_to(pending.return_to)
        set_refresh_cookie(response, session.refresh_token, sessions.REFRESH_LIFETIME)
    _set_cookie(response, "")
    if pending.user_id is not None:
        _set_link_cookie(response, "")
    return response


def _provider_of(org_id: UUID) -> Row[Any]:
    """Return the provider of an org that is open, before it is asked for anything."""
    with connections().reading() as sql:
        provider = identity_providers.get(sql, org_id)
        suspensions.check(sql, org_id)
    return provider


def _log_in(pending: PendingLogin, reply: Reply) -> Session:
    provider = _provider_of(UUID(pending.org_id))

    def is_unknown(subject: str) -> bool:
        with connections().reading() as sql:
            return identities.user_of(sql, provider, subject) is None

    person: Person = provider_logins.identify(
        provider_documents(),
        settings(),
        provider,
        pending,
        reply,
        redirect_uri=pending.redirect_uri or _redirect_uri(provider),
        needs_address=is_unknown,
    )
    with connections().transaction() as tx:
        identities.spend_state(tx, pending.state, provider_logins.LIFETIME)
        known = identities.identify(
            tx,
            provider,
            person,
            invitation=pending.invitation,
            account=provider_logins.account_of(pending),
        )
        lasts = timedelta(hours=provider.session_hours)
        session = sessions.begin(
            tx, user_id=known.user_id, org_id=provider.org_id, by=(known.identity_id, lasts)
        )
        _record(tx, known, provider.org_id)
    if known.linked_by is not None:  # other logins may have ended
        authenticator().forget()
    return session


def _record(tx: Transaction, known: Known, org_id: UUID) -> None:
    done = {
        "user.created": known.is_new,
        "identity.linked": known.linked_by is not None,
        "member.joined": known.has_joined,
        "auth.logged_in": True,
    }
    for action in (action for action, is_done in done.items() if is_done):
        proof = {"proof": known.linked_by} if action == "identity.linked" else {}
        by = {"by": "identity_provider", **proof}
        record_login(tx, action, user_id=known.user_id, org_id=org_id, **by)


def _record_refusal(pending: PendingLogin, refused: LoginRefused) -> None:
    org_id, provider_id = UUID(pending.org_id), UUID(pending.provider_id)
    details = {"reason": refused.reason}
    if refused.provider_error is not None:
        details["provider_error"] = refused.provider_error
    if isinstance(refused, LinkRequired):
        details["user_id"] = str(refused.user_id)
    if denials.may_record(org_id):
        record_refused_login(org_id=org_id, provider_id=provider_id, **details)


def _may_return_to(provider: Row[Any], url: str) -> bool:
    """Return whether the address belongs to the product, and to no other org.

    An open redirect would help a fraud.
    """
    if not re.fullmatch(r"[\x21\x22\x24-\x5b\x5d-\x7e]+", url):  # no `#`, no backslash, no spaces
        return False
    allowed = [*settings().cors_origins]
    if (public := provider.own_url or settings().public_url) is not None:
        allowed += [public, origins.as_sent(public)]
    return any(url.startswith(origin + "/") for origin in allowed)


def _redirect_uri(provider: Row[Any]) -> str:
    uri = identity_providers.redirect_uri(settings(), provider.own_url)
    if uri is None:
        raise IdentityProviderUnavailable("ARKLOOP_PUBLIC_URL is not set on this server.")
    return uri


def _sent_to(url: str | None) -> Response:
    if url is None:
        return Response(_PAGE, content_type=_HTML)
    return Response(status=303, headers={"Location": url})


def _led_back(url: str, error: ArkloopError) -> Response:
    """Send a browser to a page that shows why the login has failed."""
    errors.note(error)
    mark = "&" if "?" in url else "?"
    return _sent_to(f"{url}{mark}error={quote(error.code)}")


def _is_page() -> bool:
    """Return whether the response becomes a page in a browser, whose reader has no use for JSON."""
    accepted = request.accept_mimetypes
    return accepted["text/html"] > accepted["application/json"]


def _check_link_cookie(pending: PendingLogin) -> None:
    """Check that this browser itself has begun to link. Raises: LoginStateInvalid."""
    given = request.cookies.get(LINK_COOKIE, "").encode(errors="replace")
    if settings().secure_cookies and not hmac.compare_digest(given, pending.state.encode()):
        raise LoginStateInvalid()


def _set_link_cookie(response: Response, value: str) -> None:
    if settings().secure_cookies:  # browsers take none of this name otherwise
        _set_cookie(response, value, name=LINK_COOKIE, path="/")


def _set_cookie(
    response: Response, value: str, *, name: str = COOKIE, path: str | None = None
) -> None:
    # Lax: a provider's page sends the browser back.
    response.set_cookie(
        name,
        value,
        path=public_path(_PATH) if path is None else path,
        max_age=provider_logins.LIFETIME if value else 0,
        httponly=True,
        secure=settings().secure_cookies,
        samesite="Lax",
    )
