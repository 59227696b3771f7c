"""The documents that identity providers publish: their metadata (OpenID Connect Discovery 1.0)
and their keys (RFC 7517).

A process keeps each for an hour. They are read again before that if an owner has saved the provider
since, a key is not among those that are kept, or an address of theirs does not work; but not more
often than every `REFETCH_SECONDS`, whatever tokens say. So is a document that could not be read.
The request that sets a provider has its metadata read at once. One that cannot be used takes the
place of none: a provider in trouble sends pages of any kind. Every address is reached by the
client that refuses what is not public.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Generic, TypeVar, cast

from flask import current_app

from arkloop.api.auth.id_tokens import Jwk
from arkloop.shared import json_text
from arkloop.shared.accounts.identity_errors import IdentityProviderUnavailable
from arkloop.shared.security import egress
from arkloop.shared.security.name_lookups import look_up

KEPT_SECONDS = 3600
REFETCH_SECONDS = 30
#: For a document; for the code of a login, where a person waits, `EXCHANGE_SECONDS`.
FETCH_SECONDS, EXCHANGE_SECONDS = 2.5, 5.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 100
#: Documents of a kind that a process keeps; beyond that it reads all of them anew.
_MAX_KEPT = 1_000

_T = TypeVar("_T")

_PATH = "/.well-known/openid-configuration"
_NEVER = datetime.min.replace(tzinfo=UTC)
#: How a client shows its secret, those that are supported, the better one first.
BASIC, POST = "client_secret_basic", "client_secret_post"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """A provider's description of itself, as far as a login needs it."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None
    token_auth: str | None  # None: neither of the two that are supported
    names_issuer: bool  # `iss` is in its replies (RFC 9207)
    algorithms: Sequence[str]  # empty: it does not say


@dataclass(slots=True, eq=False)
class _Document(Generic[_T]):
    """A document as it was last read, or why it could not be."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    asked_at: float = float("-inf")
    read_at: float = float("-inf")
    saved_at: datetime = _NEVER
    value: _T | None = None
    failure: str = ""


class ProviderDocuments:
    """The documents that a web process keeps."""

    def __init__(self, policy: egress.Policy, refetch_seconds: float = REFETCH_SECONDS) -> None:
        self.policy = policy
        self._refetch_seconds = refetch_seconds
        # By issuer and by address: no org's wrong one must stand in the way of another's.
        self._metadata: dict[str, _Document[Metadata]] = {}
        self._keys: dict[str, _Document[Sequence[Jwk]]] = {}

    def metadata(
        self, issuer: str, *, is_new: bool = False, saved_at: datetime = _NEVER
    ) -> Metadata:
        """Return the metadata of a provider, which an owner has saved at `saved_at`.

        With `is_new` it is read again at once.

        Raises:
            IdentityProviderUnavailable: the message says what is wrong with it.
        """
        max_age = 0 if is_new else KEPT_SECONDS
        return self._metadata_of(issuer, max_age, saved_at=saved_at, at_once=is_new)

    def renewed(self, issuer: str) -> Metadata:
        """Return the metadata, read again unless just now. Raises: IdentityProviderUnavailable."""
        return self._metadata_of(issuer, 0)

    def _metadata_of(self, issuer: str, max_age: float, **how: Any) -> Metadata:
        self.check(issuer)
        url = issuer.rstrip("/") + _PATH

        def ask() -> Metadata:
            return self._checked(issuer, self.ask(url, {}))

        return self._read(self._metadata, issuer, ask, max_age, **how)

    def _checked(self, issuer: str, found: Mapping[str, Any]) -> Metadata:
        if found.get("issuer") != issuer:
            raise IdentityProviderUnavailable("The discovery document is that of another issuer.")
        methods = found.get("code_challenge_methods_supported")
        if isinstance(methods, list) and "S256" not in methods:
            raise IdentityProviderUnavailable("The provider does not support PKCE with S256.")
        auth = _texts(found.get("token_endpoint_auth_methods_supported")) or [BASIC]
        userinfo = found.get("userinfo_endpoint")
        return Metadata(
            issuer=issuer,
            authorization_endpoint=self._endpoint(found, "authorization_endpoint"),
            token_endpoint=self._endpoint(found, "token_endpoint"),
            jwks_uri=self._endpoint(found, "jwks_uri"),
            userinfo_endpoint=userinfo and self._endpoint(found, "userinfo_endpoint"),
            token_auth=next((name for name in (BASIC, POST) if name in auth), None),
            names_issuer=found.get("authorization_response_iss_parameter_supported") is True,
            algorithms=_texts(found.get("id_token_signing_alg_values_supported")),
        )

    def keys(
        self,
        jwks_uri: str,
        kid: str | None,
        *,
        is_new: bool = False,
        saved_at: datetime = _NEVER,
    ) -> Sequence[Jwk]:
        """Return the published keys with this `kid`, or all of them for None.

        With `is_new` they are read again, unless just now.

        Raises:
            IdentityProviderUnavailable
        """

        def ask() -> Sequence[Jwk]:
            return _keys_in(self.ask(jwks_uri, {}))

        max_age = 0 if is_new else KEPT_SECONDS
        found = self._read(self._keys, jwks_uri, ask, max_age, saved_at=saved_at)
        return _with(kid, found) or _with(kid, self._read(self._keys, jwks_uri, ask, 0))

    def check(self, url: str) -> None:
        """Check that an address may be asked, and by TLS unless it is one of the operator's own.

        Raises:
            IdentityProviderUnavailable
        """
        try:
            target = egress.check_url(url, self.policy)
            if target.scheme == "https":
                return
            addresses = egress.resolve(target.host, target.port, self.policy, look_up)
        except egress.Refused as refused:
            raise IdentityProviderUnavailable(str(refused)) from None
        except OSError:
            raise IdentityProviderUnavailable("The provider's name has no address.") from None
        if not all(self.policy.allows(ip_address(address)) for address in addresses):
            raise IdentityProviderUnavailable("The provider's addresses must begin with https://.")

    def _endpoint(self, found: Mapping[str, Any], name: str) -> str:
        url = found.get(name)
        if not isinstance(url, str):
            raise IdentityProviderUnavailable(f"The discovery document has no `{name}`.")
        self.check(url)
        return url

    def _read(
        self,
        documents: dict[str, _Document[_T]],
        name: str,
        ask: Callable[[], _T],
        max_age: float,
        *,
        saved_at: datetime = _NEVER,
        at_once: bool = False,
    ) -> _T:
        """Return a document, not older than `max_age` seconds; of callers at once one asks for it.

        One that was read for an earlier `saved_at` is too old. If it was asked for just now, or
        cannot be used, an older one is returned. With `at_once`, just now is
        since this call, and an older one is not enough.
        """
        called = time.monotonic()
        if len(documents) >= _MAX_KEPT:
            documents.clear()
        document = documents.setdefault(name, _Document())
        with document.lock:
            now = time.monotonic()
            is_old = document.value is None or now - document.read_at >= max_age
            is_old = is_old or saved_at > document.saved_at
            pause = now - called if at_once else self._refetch_seconds
            if is_old and now - document.asked_at >= pause:
                document.asked_at = now
                try:
                    document.value, document.read_at, document.failure = ask(), now, ""
                    document.saved_at = max(saved_at, document.saved_at)
                except IdentityProviderUnavailable as error:
                    document.failure = str(error)
            has_failed = at_once and document.failure
            if has_failed or document.value is None or now - document.read_at >= KEPT_SECONDS:
                raise IdentityProviderUnavailable(document.failure or None)
            return document.value

    def ask(self, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return the JSON object at an address. Raises: IdentityProviderUnavailable."""
        # With its TLS it takes a tenth of a second to load, and most processes never need it.
        from arkloop.shared.security import exchange

        self.check(url)
        sent = {"Accept": "application/json", **headers}
        try:
            response = exchange.get(url, self.policy, sent, FETCH_SECONDS, most_bytes=MAX_BYTES)
        except (exchange.NotSent, exchange.Lost) as error:
            raise IdentityProviderUnavailable(f"The identity provider: {error}") from None
        if response.problem is not None or response.status != 200:
            why = response.problem or f"It responded with HTTP status {response.status}."
            raise IdentityProviderUnavailable(f"The identity provider: {why}")
        return object_of(response.body)


def object_of(body: bytes) -> dict[str, Any]:
    """Read what a provider has sent. Raises: IdentityProviderUnavailable: no JSON object."""
    try:
        found = json_text.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise IdentityProviderUnavailable("The identity provider did not respond with JSON.")
    return found


def provider_documents() -> ProviderDocuments:
    """Return the documents that this process keeps."""
    return cast(ProviderDocuments, current_app.extensions["arkloop.provider_documents"])


def _keys_in(document: Mapping[str, Any]) -> Sequence[Jwk]:
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise IdentityProviderUnavailable("The provider's document of keys has none.")
    return [key for key in keys if isinstance(key, dict)][:MAX_KEYS]


def _with(kid: str | None, keys: Sequence[Jwk]) -> Sequence[Jwk]:
    return [key for key in keys if kid is None or key.get("kid") == kid]


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
