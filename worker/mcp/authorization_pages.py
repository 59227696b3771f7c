"""The addresses of the pages at which people authorize access."""

from collections.abc import Mapping

import httpx2

from arkloop.worker.mcp import authorization_failures
from arkloop.worker.mcp.elicitations import MAX_URL_CHARACTERS, is_web_page


def address_of(url: str, ours: Mapping[str, str]) -> str:
    """Return the address of a page, with our parameters in place of the SDK's.

    The SDK appends "?" and its own query to an endpoint that may have a query already, which has
    to be retained; no parameter may be there twice (RFC 6749, section 3.1).

    Raises:
        McpFailed: nobody can visit it.
    """
    endpoint, _, query = url.rpartition("?")
    page = str(httpx2.URL(endpoint).copy_merge_params(query).copy_merge_params(ours))
    if len(page) > MAX_URL_CHARACTERS:
        raise authorization_failures.failed(authorization_failures.PAGE_TOO_LONG)
    if not is_web_page(page):
        raise authorization_failures.failed(authorization_failures.PAGE_NOT_VALID)
    return page


def redirect_uri_of(page: str) -> str:
    """Return where a page leads back to: the exchange of its code has to name the same address."""
    return httpx2.URL(page).params["redirect_uri"]
