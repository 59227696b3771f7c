"""HTTP client of commands and of workers: an unusable environment is reported in one line."""

import os
import ssl
from collections.abc import Mapping
from urllib.request import getproxies

import click
import httpx2

from arkloop.cli.client.server_address import ServerAddress
from arkloop.shared import certificate_settings

#: What the constructor raises over a proxy or certificates; that of SOCKS is the first.
_UNUSABLE = (ImportError, httpx2.InvalidURL, OSError, ValueError)


def http_client(
    server: ServerAddress, *, timeout: httpx2.Timeout, headers: Mapping[str, str] | None = None
) -> httpx2.Client:
    """Return a client of the API, with the key.

    Proxies and certificates of the environment are not for a server on this machine.

    Raises:
        click.ClickException: a proxy or the certificates that the environment names are unusable.
    """
    is_tls = _is_https(server.url)
    proxies = getproxies()
    # To a server without TLS, no proxy for `https://` is on the way.
    is_proxy_tls = _is_https(proxies.get("http") or proxies.get("all", ""))
    if (is_tls or is_proxy_tls) and not server.is_loopback:
        _check_certificates()
    try:
        return httpx2.Client(
            base_url=f"{server.url}/v1",
            headers={"Authorization": f"Bearer {server.key}", **(headers or {})},
            timeout=timeout,
            trust_env=not server.is_loopback,
            # The system's certificates take longer to load than a request on this machine.
            verify=True if is_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )
    except _UNUSABLE as error:
        _check_proxies()
        raise click.ClickException(f"Cannot make an HTTP client: {error}") from error


def _is_https(url: str) -> bool:
    return url.lower().startswith("https:")


def _check_certificates() -> None:
    problems: list[str] = []
    certificate_settings.read(os.environ, problems)
    if problems:
        raise click.ClickException(f"{problems[0]}.")


def _check_proxies() -> None:
    """Check each proxy alone, without its address in the message, which may have a password."""
    no_authorities = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for scheme, url in getproxies().items():
        variable = f"{scheme.upper()}_PROXY"
        try:
            if scheme in ("http", "https", "all"):
                proxy = url if "://" in url else f"http://{url}"
                httpx2.HTTPTransport(proxy=proxy, verify=no_authorities)
        except ImportError as error:
            advice = "unset it, or install the Python package socksio"
            message = f"{variable} names a SOCKS proxy: {advice}."
            raise click.ClickException(message) from error
        except (httpx2.InvalidURL, ValueError) as error:
            message = f"{variable} must look like http://host:port."
            raise click.ClickException(message) from error
