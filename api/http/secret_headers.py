"""Headers that an org gives for requests to a server of its own, as a field of a body."""

import re
from collections.abc import Collection
from typing import Any

from marshmallow import ValidationError, fields, validate

from arkloop.api.http.fields import BoundedDict

MAX_HEADERS = 16

#: Of the characters that RFC 9110 allows, those that no server or proxy makes something else of.
_NAME = validate.Regexp(
    r"\A[A-Za-z0-9._-]{1,64}\Z",
    error="names must be 1 to 64 letters, digits, dashes, underscores and dots",
)
#: The message does not repeat what may be a secret.
_VALUE = validate.Regexp(
    r"\A[\x21-\x7e]([\x20-\x7e]{0,3998}[\x21-\x7e])?\Z",
    error="values must be 1 to 4000 printable ASCII characters",
)
#: Those of the connection and of every body.
_RESERVED = ("connection", "host", "keep-alive", "te", "upgrade")
_RESERVED_PREFIXES = ("accept", "content-", "proxy-", "transfer-")


class SecretHeaders(BoundedDict):
    """An object of headers, or null; `reserved` names and prefixes belong to the protocol."""

    def __init__(
        self, *, reserved: Collection[str] = (), reserved_prefixes: Collection[str] = (), **kw: Any
    ) -> None:
        self._reserved = {*_RESERVED, *reserved}
        self._prefixes = (*_RESERVED_PREFIXES, *reserved_prefixes)
        super().__init__(
            most=MAX_HEADERS,
            keys=fields.String(validate=_NAME),
            values=fields.String(validate=_VALUE),
            allow_none=True,
            validate=self._check,
            **kw,
        )

    def _check(self, headers: dict[str, str]) -> None:
        if len({name.lower() for name in headers}) < len(headers):
            raise ValidationError("duplicate header name (case is ignored)")
        for name in headers:
            # To many servers X_Y is X-Y.
            known_as = re.sub("[._]", "-", name.lower())
            if known_as in self._reserved or known_as.startswith(self._prefixes):
                raise ValidationError(f"must not contain {name}")
