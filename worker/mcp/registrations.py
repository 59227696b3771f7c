"""Our clients at the authorization server of a session: which one a page has, and a new token."""

from collections.abc import Mapping
from typing import Any

from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata

from arkloop.worker.mcp import token_requests
from arkloop.worker.mcp.grants import parsed
from arkloop.worker.mcp.server import Server


class Registrations:
    """The client that an admin has registered, or those that were registered dynamically."""

    def __init__(self, server: Server, metadata: OAuthClientMetadata) -> None:
        self.by_hand = token_requests.registered_by_hand(server)
        self._redirect_uris = metadata.redirect_uris
        self._stored: OAuthClientInformationFull | None = None  # made before, by another process
        self._made: OAuthClientInformationFull | None = None  # by this session

    @property
    def known(self) -> OAuthClientInformationFull | None:
        """The client of people who have granted nothing yet; None: one has to be registered."""
        return self.by_hand or self._stored

    def use_stored(self, client: Mapping[str, Any] | None) -> None:
        """Use the client that is stored now, if people come back here from its pages."""
        stored = parsed(OAuthClientInformationFull, client)
        self._stored = stored if stored is None or self.leads_here(stored) else self._made

    def add(self, client: OAuthClientInformationFull) -> None:
        """Complete a registration; as a part of the request and of the grant it is stored.

        Some authorization servers leave out what they were sent, or write it in another form.
        """
        client.redirect_uris = self._redirect_uris
        self._made = client

    def leads_here(self, client: OAuthClientInformationFull) -> bool:
        """Return whether people come back from a client's pages: our address may have changed."""
        ours = self._redirect_uris or []
        uris = client.redirect_uris  # not known of an admin's client, and of some earlier ones
        return not uris or str(ours[0]) in map(str, uris)

    def in_place_of(
        self, forgotten: OAuthClientInformationFull | None
    ) -> OAuthClientInformationFull | None:
        """Return the stored client, None if it is the forgotten one: another is registered then."""
        stored = self._stored
        is_it = forgotten is None or stored is None or stored.client_id == forgotten.client_id
        return None if is_it else stored
