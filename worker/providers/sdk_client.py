"""Where both SDKs' clients are told to connect to."""

from shared import egress
from shared.model_routes import Route
from worker.providers.sdk_errors import address_refused


def address(route: Route, vendors: str, policy: egress.Policy | None) -> str:
    """The server's address; always told, since without it the SDKs take one from the environment.

    Raises:
        ProviderError: the policy refuses it.
    """
    base_url = route.base_url or vendors
    if policy is None:
        return base_url
    try:
        return egress.check_url(base_url, policy).text
    except egress.Refused as error:
        raise address_refused(error) from error
