"""An MCP server whose refresh tokens are for one use, and the access of a person to it."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import Queue
from typing import Any
from urllib.parse import parse_qs

from arkloop.worker.mcp.server import Server
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.oauth_servers import CALLBACK
from tests.worker.mcp.sdk_server import server_at


@dataclass
class Person:
    """The access that somebody has granted, as the workers store it."""

    url: str
    seconds: float  # that an access token lives
    issued: int = 0  # tokens; the server accepts the last ones only
    revoked: int = 0  # how many of the access tokens it refuses in any case
    #: Called before the response to a refresh.
    on_refresh: Callable[[], None] = lambda: None
    #: Called before a grant is stored.
    on_keep: Callable[[], None] = lambda: None
    grant: Mapping[str, Any] | None = None
    received: Queue[dict[str, Any]] = field(default_factory=Queue)

    @property
    def server(self) -> Server:
        oauth = {"client_id": "own", "client_secret": None, "redirect_uri": CALLBACK}
        return replace(server_at(self.url), oauth=oauth, owner="end_user:a")

    def fields(self) -> Mapping[str, Any]:
        return {"grant": self.grant, "client": None, "answered": None}

    def keep(self, grant: Mapping[str, Any]) -> None:
        self.on_keep()
        self.grant = grant

    def issue(self) -> dict[str, Any]:
        self.issued += 1
        tokens = {name: f"{name}-{self.issued}" for name in ("access_token", "refresh_token")}
        return {**tokens, "token_type": "Bearer", "expires_in": self.seconds}

    def refresh(self) -> None:
        """Store a new grant, as another worker does."""
        base = self.url.removesuffix("/mcp")
        token_url = f"{base}/token"
        metadata = {"authorization_endpoint": f"{base}/authorize", "token_endpoint": token_url}
        self.grant = {
            "id": f"of another worker, {self.issued}",
            "obtained_at": time.time(),
            "server_url": self.url,
            "client": {"client_id": "own", "token_endpoint_auth_method": "none"},
            "at": [base, token_url, "own"],
            "issuer": base,
            "metadata": {"issuer": base, **metadata},
            "resource": None,
            "tokens": self.issue(),
            "expires_at": time.time() + self.seconds,
        }

    @property
    def has_newest(self) -> bool:
        """True if the tokens that the server accepts are those that are stored."""
        assert self.grant is not None
        stored: str = self.grant["tokens"]["refresh_token"]
        return f"refresh_token-{self.issued}" == stored


@contextmanager
def rotating(on_call: Callable[[Lying], None], seconds: int, **more: Any) -> Iterator[Person]:
    """Start it, with the access of a person to it."""
    person = Person("", seconds)

    def do_POST(handler: Lying) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"])).decode()
        if handler.path == "/token":
            if parse_qs(body)["refresh_token"] != [f"refresh_token-{person.issued}"]:
                person.issued += 1  # whatever there was is revoked
                handler.send(400, b'{"error": "invalid_grant"}')
            else:
                tokens = person.issue()
                person.on_refresh()
                handler.send_json(tokens)
            return
        handler.message = json.loads(body)
        person.received.put(handler.message)
        newest = f"Bearer access_token-{person.issued}"
        if handler.headers["Authorization"] == newest and person.issued > person.revoked:
            handler.respond(handler.message)
        else:
            handler.send(401, b"")

    about = {"do_POST": do_POST, "replies": defaultdict(Queue), "session_id": "s"}
    with lying(on_call, **{**about, **more}) as (url, _):
        person.url = url
        person.refresh()
        yield person
