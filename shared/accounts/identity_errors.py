"""Errors of logins by an identity provider."""

from uuid import UUID

from arkloop.shared.errors import ArkloopError, Conflict, Forbidden, NotFound, Unavailable


class IdentityProviderNotFound(NotFound):
    code = "identity_providers.not_found"
    message = "The organization has no identity provider, or there is no such organization."


class IdentityProviderUnavailable(Unavailable):
    code = "identity_providers.unavailable"
    message = "The identity provider did not respond as OpenID Connect demands; try again shortly."


class ClientSecretUnreadable(Unavailable):
    code = "identity_providers.secret_unreadable"
    message = (
        "The client secret of the identity provider cannot be decrypted on this server; the log of"
        " the server says why."
    )


class NoOwnerWithPassword(Conflict):
    code = "identity_providers.required"
    message = (
        "No owner of the organization has a password: without the identity provider nobody could"
        " log in as one. Have the password of an owner reset first, by another owner or by the"
        " operator of the service."
    )


class LoginStateInvalid(ArkloopError):
    code = "auth.login_state_invalid"
    message = (
        "This login is unknown to your browser, has expired or was completed before; start it"
        " again."
    )


class LoginRefused(Forbidden):
    """`reason` is for the audit log: a word that is never secret; so is `provider_error`, the
    code of the provider's own error, if it has sent one.
    """

    code = "auth.login_refused"
    message = "The identity provider's reply was refused."

    def __init__(
        self, reason: str, message: str | None = None, *, provider_error: str | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.provider_error = provider_error


class LinkRequired(LoginRefused):
    code = "auth.link_required"
    message = (
        "A member of the organization has your address, and that account may be somebody else's:"
        " it has a password, API keys, access to MCP servers, a page that asks for such access,"
        " runs that have not ended, or an identity provider of another organization. If the"
        " account is yours, log in with its password and link the identity provider from there."
        " If it is not, ask an owner of the organization to remove the member."
    )

    def __init__(self, user_id: UUID) -> None:
        super().__init__("link_required")
        self.user_id = user_id


class LinkRefused(LoginRefused):
    """Refusal of an identity for the account from which it was to be linked."""

    code = "auth.link_refused"
    message = "The person whom the identity provider has identified is not that of the account."


class ClientRefused(LoginRefused):
    """Refusal of this service by the provider, for all people alike: no time mends it."""

    code = "identity_providers.client_refused"
    message = (
        "The identity provider refuses this service as its client: an owner of the organization"
        " must check the client id and set the client secret again."
    )

    def __init__(self, message: str | None = None) -> None:
        super().__init__("client_refused", message)
