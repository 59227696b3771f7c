"""Issuers: the names of authorization servers, which are URLs."""

from mcp.client.auth.utils import issuers_match


class Issuer(str):
    """The issuer that is expected, which also equals its other form where it is an origin alone.

    The SDK's flow compares it by `!=` with the one that the server's metadata has, and has no other
    hook. Resources of Google name `https://accounts.google.com/`, whose metadata lacks the slash.
    """

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and issuers_match(str(self), str(other))

    def __ne__(self, other: object) -> bool:
        return not self == other
