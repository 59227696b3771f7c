"""Our clients at the authorization server of a session: which one a page has, and a new token."""

import time
from collections.abc import Mapping
from typing import Any

from mcp.client.auth.utils import credentials_match_issuer
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata

from arkloop.worker.mcp import token_requests
from arkloop.worker.mcp.grants import has_secret_expired, parsed
from arkloop.worker.mcp.server import Server


class Registrations:
    """The client that an admin has registered, or those that were registered dynamically."""

    def __init__(self, server: Server, metadata: OAuthClientMetadata) -> None:
        self.by_hand = token_requests.registered_by_hand(server)
        self._redirect_uris = metadata.redirect_uris
        self._stored: OAuthClientInformationFull | None = None  # made before, by another process
        self._made: OAuthClientInformationFull | None = None  # by this session
        #: True if the stored one was made because a code was refused to another.
        self.is_replacement = False

    @property
    def known(self) -> OAuthClientInformationFull | None:
        """The client of people who have granted nothing yet; None: one has to be registered."""
        return self.by_hand or self._stored

    def use_stored(self, client: Mapping[str, Any] | None) -> None:
        """Use the client that is stored now, if people come back here from its pages."""
        self.is_replacement = (client or {}).get("is_replacement", False)
        stored = parsed(OAuthClientInformationFull, client)
        self._stored = stored if stored is None or self._leads_here(stored) else self._made

    def add(self, client: OAuthClientInformationFull) -> None:
        """Complete a registration; as a part of the request and of the grant it is stored.

        Some authorization servers leave out what they were sent, or write it in another form. The
        time is that of our clock: clients are compared by it.
        """
        client.redirect_uris = self._redirect_uris
        client.client_id_issued_at = int(time.time())
        self._made = client

    def for_page(
        self, client: OAuthClientInformationFull | None, issuer: str
    ) -> OAuthClientInformationFull | None:
        """Return the newest client that a page can have, None if one has to be registered.

        `client` is that of the tokens which the page is to replace, if any. To one whose secret has
        expired the code would be refused, and so it was to a client that has a replacement.
        """
        if client is not None and (client is self.by_hand or client is self._made):
            return client  # new, whatever its registration says
        known = [self._stored] if self.is_replacement else [client, self._stored]
        usable = [one for one in known if one is not None and self._is_usable(one, issuer)]
        return max(usable, key=lambda one: one.client_id_issued_at or 0, default=None)

    def in_place_of(
        self, refused: OAuthClientInformationFull | None
    ) -> OAuthClientInformationFull | None:
        """Return the stored client, None if it is the refused one: another is registered then."""
        if refused and self._stored and self._stored.client_id == refused.client_id:
            self._stored = None
        return self._stored

    def _is_usable(self, client: OAuthClientInformationFull, issuer: str) -> bool:
        if has_secret_expired(client.client_secret_expires_at):
            return False
        return self._leads_here(client) and credentials_match_issuer(client, issuer, None)

    def _leads_here(self, client: OAuthClientInformationFull) -> bool:
        """Return whether people come back from a client's pages: our address may have changed."""
        ours = self._redirect_uris or []
        uris = client.redirect_uris  # not known of an admin's client, and of some earlier ones
        return not uris or str(ours[0]) in map(str, uris)
