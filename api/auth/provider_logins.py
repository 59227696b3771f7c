"""Logins by an identity provider: the authorization code flow with PKCE (RFC 7636, RFC 9700).

What a login needs when the person comes back is in a signed cookie of their browser: nothing is
stored for those who never come back, and nobody can be made to end the login of somebody else.
"""

import base64
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

from sqlalchemy import Row

from arkloop.api.auth import id_tokens, signed_tokens
from arkloop.api.auth.id_tokens import BadIdToken, BadKey
from arkloop.api.auth.provider_documents import (
    BASIC,
    EXCHANGE_SECONDS,
    MAX_BYTES,
    Metadata,
    ProviderDocuments,
    object_of,
)
from arkloop.shared.accounts import identity_providers
from arkloop.shared.accounts.identities import Account, Person
from arkloop.shared.accounts.identity_errors import (
    ClientRefused,
    IdentityProviderUnavailable,
    LoginRefused,
    LoginStateInvalid,
)
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unauthorized

log = logging.getLogger(__name__)

#: In which a person logs in at the provider.
LIFETIME = timedelta(minutes=10)
SCOPE = "openid email profile"
MAX_COOKIE_LENGTH = 4_000

#: Codes of errors (RFC 6749, 4.1.2.1 and 5.2) that are kept; other texts of providers are not.
_ERROR = re.compile(r"[A-Za-z0-9_.-]{1,40}")
#: Those of a token endpoint that refuse this service, for all people alike. In a reply anybody
#: can write them: what a browser brings says nothing of the provider.
_CLIENT_ERRORS = ("invalid_client", "unauthorized_client")

_TYPE = "oidc+jwt"
_AUDIENCE = "arkloop-oidc"
_OF_ACCOUNT = ("user_id", "session_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingLogin:
    """A login that was begun in a browser; `state`, `nonce` and `verifier` are random."""

    provider_id: str
    org_id: str
    issuer: str
    state: str
    nonce: str
    verifier: str
    return_to: str | None
    invitation: str | None
    #: The account to link the person to, and the login in which they gave its password.
    user_id: str | None = None
    session_id: str | None = None
    #: Where its page leads back to; None: it was begun by an earlier release.
    redirect_uri: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The query that a provider sends a browser back with."""

    state: str
    code: str | None
    issuer: str | None
    error: str | None


def begin(
    provider: Row[Any],
    *,
    redirect_uri: str,
    return_to: str | None,
    invitation: str | None = None,
    account: Account | None = None,
) -> tuple[PendingLogin, datetime]:
    """Begin a login; returns it and the time of its end."""
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    pending = PendingLogin(
        provider_id=str(provider.id),
        org_id=str(provider.org_id),
        issuer=provider.issuer,
        state=state,
        nonce=nonce,
        verifier=verifier,
        return_to=return_to,
        invitation=invitation,
        user_id=None if account is None else str(account.user_id),
        session_id=None if account is None else str(account.session_id),
        redirect_uri=redirect_uri,
    )
    return pending, (datetime.now(UTC) + LIFETIME).replace(microsecond=0)


def cookie_of(settings: Settings, pending: PendingLogin, ends_at: datetime) -> str:
    """Sign a login for the browser that has begun it."""
    login = asdict(pending)
    # Apart from the rest: processes of earlier releases know no other fields of a login.
    account = {name: login.pop(name) for name in _OF_ACCOUNT}
    apart = {"redirect_uri": login.pop("redirect_uri")}
    claims = {"aud": _AUDIENCE, "exp": int(ends_at.timestamp()), "login": login, **apart}
    if pending.user_id is not None:
        claims["account"] = account
    return signed_tokens.sign(settings, _TYPE, claims)


def begun_in(settings: Settings, cookie: str) -> PendingLogin:
    """Return the login that was begun last in the browser of this cookie.

    Raises:
        LoginStateInvalid: none was, or its time is over.
    """
    try:
        claims = signed_tokens.verify(
            settings,
            _TYPE,
            cookie,
            audience=_AUDIENCE,
            required=["exp", "login"],
            max_length=MAX_COOKIE_LENGTH,
        )
    except Unauthorized:
        raise LoginStateInvalid() from None
    if claims["exp"] > time.time() + LIFETIME.total_seconds() + id_tokens.LEEWAY_SECONDS:
        raise LoginStateInvalid()
    apart = {**claims.get("account", {}), "redirect_uri": claims.get("redirect_uri")}
    return PendingLogin(**claims["login"], **apart)


def check_state(pending: PendingLogin, reply: Reply) -> None:
    """Check that the reply belongs to the login. Raises: LoginStateInvalid."""
    given = reply.state.encode(errors="replace")
    if not hmac.compare_digest(given, pending.state.encode()):
        raise LoginStateInvalid()


def account_of(pending: PendingLogin) -> Account | None:
    """Return the account that the person is to be linked to, None if there is none."""
    if pending.user_id is None or pending.session_id is None:
        return None
    return Account(user_id=UUID(pending.user_id), session_id=UUID(pending.session_id))


def authorization_url(metadata: Metadata, provider: Row[Any], pending: PendingLogin) -> str:
    """Build the address at the provider to which the browser goes."""
    challenge = hashlib.sha256(pending.verifier.encode()).digest()
    asked = {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": pending.redirect_uri,
        "scope": SCOPE,
        "state": pending.state,
        "nonce": pending.nonce,
        "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }
    endpoint = metadata.authorization_endpoint
    return endpoint + ("&" if "?" in endpoint else "?") + urlencode(asked)


def identify(
    documents: ProviderDocuments,
    settings: Settings,
    provider: Row[Any],
    pending: PendingLogin,
    reply: Reply,
    *,
    redirect_uri: str,
    needs_address: Callable[[str], bool],
) -> Person:
    """Exchange the code of a reply, and return whom the provider has identified.

    `needs_address` says of a subject whether the address is wanted: it may cost a request.

    Raises:
        LoginRefused: the reply, or what the provider gave for it, proves nothing.
        ClientRefused
        ClientSecretUnreadable
        IdentityProviderUnavailable
    """
    if reply.code is None:
        raise _refusal(
            provider,
            reply.error,
            LoginRefused("denied_at_provider", "The identity provider did not log you in."),
        )
    if UUID(pending.provider_id) != provider.id or pending.issuer != provider.issuer:
        raise LoginStateInvalid()
    metadata = documents.metadata(provider.issuer, saved_at=provider.updated_at)
    if (reply.issuer is not None or metadata.names_issuer) and reply.issuer != provider.issuer:
        raise LoginRefused("another_issuer")
    secret, code = identity_providers.secret_of(settings, provider), reply.code
    tokens = _ask(
        documents,
        metadata,
        "token_endpoint",
        lambda now: _exchange(documents, now, provider, pending, code, redirect_uri, secret),
    )
    id_token, access_token = tokens.get("id_token"), tokens.get("access_token")
    if not isinstance(id_token, str):
        raise LoginRefused("no_id_token")
    access_token = access_token if isinstance(access_token, str) else None
    try:
        claims = _claims(documents, metadata, provider, pending, id_token, access_token)
    except BadIdToken as error:
        log.warning("ID token of provider %s refused: %s", provider.id, error)
        raise LoginRefused("id_token_invalid") from None
    is_settled = "email_verified" in claims or provider.assumes_verified_email
    says_all = "email" in claims and is_settled
    if not says_all and access_token is not None and needs_address(claims["sub"]):
        token, subject = access_token, claims["sub"]
        claims |= _ask(
            documents,
            metadata,
            "userinfo_endpoint",
            lambda now: _userinfo(documents, now.userinfo_endpoint, token, subject),
        )
    return _person(claims)


def _ask(
    documents: ProviderDocuments,
    known: Metadata,
    endpoint: str,
    ask: Callable[[Metadata], dict[str, Any]],
) -> dict[str, Any]:
    """Ask a provider at an endpoint, once more if that fails and it has moved, or if it refuses
    this service as its client and has another way to show the secret.

    A code must not be sent twice to where it was taken (RFC 6749, 4.1.2).
    """
    try:
        return ask(known)
    except (IdentityProviderUnavailable, ClientRefused) as error:
        now = documents.renewed(known.issuer)
        is_another = getattr(now, endpoint) != getattr(known, endpoint)
        if isinstance(error, ClientRefused):
            is_another = is_another or now.token_auth != known.token_auth
        if not is_another:
            raise
        return ask(now)


def _claims(
    documents: ProviderDocuments,
    known: Metadata,
    provider: Row[Any],
    pending: PendingLogin,
    id_token: str,
    access_token: str | None,
) -> dict[str, Any]:
    """Verify an ID token, by the keys as they are now if it is not by those that are kept.

    Raises:
        BadIdToken
        IdentityProviderUnavailable
    """

    def verified(metadata: Metadata, *, is_new: bool) -> dict[str, Any]:
        uri, saved_at = metadata.jwks_uri, provider.updated_at
        return id_tokens.verify(
            id_token,
            lambda kid: documents.keys(uri, kid, is_new=is_new, saved_at=saved_at),
            algorithm=provider.signing_algorithm,
            issuer=provider.issuer,
            client_id=provider.client_id,
            nonce=pending.nonce,
            access_token=access_token,
        )

    try:
        return verified(known, is_new=False)
    except (BadKey, IdentityProviderUnavailable):
        return verified(documents.renewed(provider.issuer), is_new=True)


def _exchange(
    documents: ProviderDocuments,
    metadata: Metadata,
    provider: Row[Any],
    pending: PendingLogin,
    code: str,
    redirect_uri: str,
    secret: str | None,
) -> dict[str, Any]:
    """Exchange a code for tokens.

    Raises:
        LoginRefused
        ClientRefused
        IdentityProviderUnavailable
    """
    from arkloop.shared.security import exchange

    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": pending.verifier,
    }
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    if secret is None:
        form["client_id"] = provider.client_id
    elif metadata.token_auth == BASIC:
        # Each form-encoded first, as RFC 6749, 2.3.1, demands.
        pair = f"{quote(provider.client_id, safe='')}:{quote(secret, safe='')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    elif metadata.token_auth is not None:
        form |= {"client_id": provider.client_id, "client_secret": secret}
    else:
        raise ClientRefused("The identity provider accepts client secrets in no supported form.")
    documents.check(metadata.token_endpoint)
    try:
        response = exchange.post(
            exchange.unaborted,
            metadata.token_endpoint,
            documents.policy,
            headers,
            urlencode(form).encode(),
            EXCHANGE_SECONDS,
            most_bytes=MAX_BYTES,
        )
    except (exchange.NotSent, exchange.Lost) as error:
        raise IdentityProviderUnavailable(f"The identity provider: {error}") from None
    if response.status in (400, 401, 403):
        log.warning("provider %s refused the code: HTTP status %d", provider.id, response.status)
        code_of_error = _error_in(response.body)
        is_client = code_of_error in _CLIENT_ERRORS
        refused = ClientRefused() if is_client else LoginRefused("code_refused")
        raise _refusal(provider, code_of_error, refused)
    if response.status != 200 or response.problem is not None:
        why = response.problem or f"It responded with HTTP status {response.status}."
        raise IdentityProviderUnavailable(f"The identity provider: {why}")
    return object_of(response.body)


def _error_in(body: bytes) -> Any:
    """Return the `error` of a token endpoint's refusal, None without one."""
    try:
        return object_of(body).get("error")
    except IdentityProviderUnavailable:
        return None


def _refusal(provider: Row[Any], error: Any, refused: LoginRefused) -> LoginRefused:
    """Add the code of an error of the provider to a refusal, and log it; returns the refusal."""
    if isinstance(error, str) and _ERROR.fullmatch(error):
        log.info("provider %s did not log a person in: %s", provider.id, error)
        refused.provider_error = error
    return refused


def _userinfo(
    documents: ProviderDocuments, url: str | None, access_token: str, subject: str
) -> dict[str, Any]:
    """Return the claims of the person that the provider keeps out of ID tokens."""
    if url is None:
        return {}
    if not access_token.isascii() or not access_token.isprintable():
        raise LoginRefused("access_token_invalid")
    found = documents.ask(url, {"Authorization": f"Bearer {access_token}"})
    if found.get("sub") != subject:  # of somebody else (OpenID Connect Core, 5.3.2)
        raise LoginRefused("userinfo_of_another")
    return {name: found[name] for name in ("email", "email_verified") if name in found}


def _person(claims: dict[str, Any]) -> Person:
    email, name = claims.get("email"), claims.get("preferred_username")
    verified = claims.get("email_verified")
    return Person(
        subject=claims["sub"],
        email=email if isinstance(email, str) else None,
        # Some providers write it as a text. Anything else is not true.
        email_is_verified=None if verified is None else verified is True or verified == "true",
        name=name if isinstance(name, str) else None,
    )
