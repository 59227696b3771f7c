"""An identity provider on loopback that says what a test tells it to, true or forged."""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

CLIENT_ID = "arkloop"
CLIENT_SECRET = "canary-client-secret/with+signs"

#: Made once: an RSA key takes a tenth of a second.
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHORT_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, kid: str | None = "one", **members: Any) -> dict[str, Any]:
    """Return the public half of a key, as providers publish it."""
    kinds: dict[type, Any] = {
        rsa.RSAPrivateKey: RSAAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
    }
    kind = next((kinds[type_] for type_ in kinds if isinstance(key, type_)), OKPAlgorithm)
    public: dict[str, Any] = json.loads(kind.to_jwk(key.public_key()))
    public.pop("key_ops", None)
    return {**public, **({} if kid is None else {"kid": kid}), **members}


def encoded(part: Any) -> str:
    """Encode a part of a JWT, JSON unless it is a text already."""
    text = part if isinstance(part, str) else json.dumps(part)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@dataclass(eq=False)
class IdentityProvider:
    """Provider and the person at it; the fields say what it does next."""

    url: str = ""
    #: Of the person's address.
    domain: str = field(default_factory=lambda: f"corp-{secrets.token_hex(4)}.example")
    key: Any = RSA_KEY
    algorithm: str = "RS256"
    kid: str | None = "one"
    keys: list[dict[str, Any]] = field(default_factory=lambda: [jwk(RSA_KEY)])
    #: Of the person, in place of those that are right.
    claims: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, Any] = field(default_factory=dict)
    #: In place of what the discovery document says.
    metadata: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] | None = None
    #: Makes the ID token of the claims that are right.
    forge: Callable[["IdentityProvider", dict[str, Any]], str] | None = None
    #: In place of the token endpoint's response: status and body.
    token_response: tuple[int, Any] | None = None
    #: Paths that it has left; each works below `/v2`, too.
    gone: set[str] = field(default_factory=set)
    #: What was asked for: the paths, and the forms of the token endpoint.
    asked: list[str] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def authorize(self, authorization_url: str, **more: str) -> str:
        """Log the person in; returns the query that their browser comes back with."""
        parts = urlsplit(authorization_url)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        assert f"{self.url}/authorize" == authorization_url.partition("?")[0]
        code = f"canary-code-{len(self._codes)}"
        self._codes[code] = asked
        return urlencode({"state": asked["state"], "code": code, **more})

    def right_claims(self, nonce: str) -> dict[str, Any]:
        now = int(time.time())
        right = {"iss": self.url, "sub": "sub-1", "aud": CLIENT_ID, "nonce": nonce}
        right |= {"exp": now + 300, "iat": now}  # type: ignore[dict-item]  # numbers, too
        return {**right, "email": f"bob@{self.domain}", "email_verified": True}

    def id_token(self, claims: dict[str, Any]) -> str:
        """Sign claims as this provider does."""
        headers = {"kid": self.kid, **self.headers} if self.kid else self.headers
        return jwt.encode(claims, self.key, self.algorithm, headers=headers)

    def published(self, path: str) -> Any:
        """Return the document at a path, None without one."""
        if path == "/.well-known/openid-configuration":
            names = {"authorization_endpoint": "authorize", "token_endpoint": "token"}
            names |= {"jwks_uri": "jwks", "userinfo_endpoint": "userinfo"}
            found: dict[str, Any] = {name: f"{self.url}/{end}" for name, end in names.items()}
            found |= {"issuer": self.url, "code_challenge_methods_supported": ["S256"]}
            return {**found, **self.metadata}
        if path in self.gone:
            return None
        documents = {"/jwks": {"keys": self.keys}, "/userinfo": self.userinfo}
        return documents.get(path.removeprefix("/v2"))

    def exchange(self, form: dict[str, str], authorization: str) -> tuple[int, Any]:
        """Exchange a code, once, for the client and the verifier that it was made for."""
        asked = self._codes.pop(form.get("code", ""), None)
        basic = base64.b64encode(b"arkloop:canary-client-secret%2Fwith%2Bsigns").decode()
        challenge = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if (
            asked is None
            or authorization != f"Basic {basic}"
            or form["redirect_uri"] != asked["redirect_uri"]
            or base64.urlsafe_b64encode(challenge).rstrip(b"=").decode() != asked["code_challenge"]
        ):
            return 400, {"error": "invalid_grant"}
        if self.token_response is not None:
            return self.token_response
        claims = {**self.right_claims(asked["nonce"]), **self.claims}
        claims = {name: value for name, value in claims.items() if value is not ...}
        token = self.forge(self, claims) if self.forge else self.id_token(claims)
        return 200, {"id_token": token, "access_token": "canary-access", "token_type": "Bearer"}

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(provider: IdentityProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            provider.asked.append(self.path)
            found = provider.published(self.path)
            self._respond(200 if found is not None else 404, found)

        def do_POST(self) -> None:
            provider.asked.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            if self.path in provider.gone:
                return self._respond(404, {})
            provider.forms.append(form)
            self._respond(*provider.exchange(form, self.headers.get("Authorization", "")))

        def _respond(self, status: int, body: Any) -> None:
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
