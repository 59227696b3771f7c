"""The identity and address of a server: all that the sidecar knows of an org."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Self
from uuid import UUID

#: A shorter value of a header is too common a text to be left out.
MIN_SECRET_CHARACTERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """`url` of streamable HTTP, else `command`: a program and its arguments."""

    org_id: UUID
    config_id: UUID
    name: str
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    command: tuple[str, ...] = ()
    #: `{client_id, client_secret, redirect_uri}`; None: people need not authorize anything.
    oauth: Mapping[str, str | None] | None = field(default=None, repr=False)
    owner: str | None = None  # whose access is used
    #: Of the config as it is meant; the sidecar does not get it.
    updated_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["updated_at"]
        return {**fields, "org_id": str(self.org_id), "config_id": str(self.config_id)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Invert `to_json`."""
        ids = {name: UUID(fields[name]) for name in ("org_id", "config_id")}
        return cls(**{**fields, **ids, "command": tuple(fields["command"])})

    def without_secrets(self, text: str, tokens: Iterable[str] = ()) -> str:
        """Remove the values of headers, and tokens, from what the server reports of a failure."""
        for token in tokens:
            text = text.replace(token, "[token]")
        client_secret = (self.oauth or {}).get("client_secret")
        for value in (*self.headers.values(), client_secret or ""):
            # Of "Bearer …" many repeat the second part alone.
            for secret in (value, value.partition(" ")[2]):
                if len(secret) >= MIN_SECRET_CHARACTERS:
                    text = text.replace(secret, "[header]")
        return text

    @property
    def granted_for(self) -> tuple[str | None, str | None, str | None]:
        """The owner, address and client that a grant is bound to."""
        return self.owner, self.url, (self.oauth or {}).get("client_id")

    @property
    def fingerprint(self) -> str:
        """The same for the same server under the same settings: sessions are kept by it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
