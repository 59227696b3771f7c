"""The choice of the server that the command line uses, and of its key."""

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click
import httpx2

DEFAULT_URL = "http://127.0.0.1:8080"

#: The data of `arkloop dev`, in the folder where it was started.
DEFAULT_FOLDER = ".arkloop"


class ServerAddress(NamedTuple):
    """The base URL, without a slash at its end, and an API key or access token."""

    url: str
    key: str

    @property
    def is_loopback(self) -> bool:
        return leads_to_loopback(urlsplit(self.url).hostname or "")


def find_server(environ: Mapping[str, str] | None = None) -> ServerAddress:
    """Find the server of ARKLOOP_URL and ARKLOOP_API_KEY, else that of the dev server's folder.

    The folder is ARKLOOP_DATA, `.arkloop` by default, and may have come with somebody's
    repository. So the environment's key never goes to an address that the folder names, and the
    folder's key goes only to a server on this machine.

    Raises:
        click.ClickException: the message says what to do.
    """
    environ = os.environ if environ is None else environ
    folder = Path(environ.get("ARKLOOP_DATA") or DEFAULT_FOLDER)
    key = environ.get("ARKLOOP_API_KEY", "").strip()
    url = environ.get("ARKLOOP_URL", "").strip()
    if not url and (url := _read(folder / "url") or ""):
        _check_is_of_a_dev_server(folder / "url", url, has_key=bool(key))
    url = (url or DEFAULT_URL).rstrip("/")
    if not (host := _host(url)):
        raise click.ClickException(f"ARKLOOP_URL must look like https://host:port, is {url!r}.")
    is_loopback = leads_to_loopback(host)
    if not key and is_loopback:
        key = _read(folder / "api-key") or ""
    if not key:
        advice = "set ARKLOOP_API_KEY"
        if is_loopback:
            advice += f", or start `arkloop dev`: there is no {folder / 'api-key'}"
        raise click.ClickException(f"No API key for {url}: {advice}.")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise click.ClickException("The API key contains invalid characters; check it.")
    return ServerAddress(url, key)


def _check_is_of_a_dev_server(file: Path, url: str, *, has_key: bool) -> None:
    """Check a dev server's address. Raises: click.ClickException: no API key may be sent there."""
    if has_key:
        raise click.ClickException(
            f"ARKLOOP_API_KEY is not sent to the address in {file} ({url}): set ARKLOOP_URL, or "
            "unset ARKLOOP_API_KEY to talk to the dev server of this folder."
        )
    if not leads_to_loopback(_host(url)):
        raise click.ClickException(
            f"The address in {file} ({url}) is not on this machine: set ARKLOOP_URL and "
            "ARKLOOP_API_KEY if you trust it."
        )


def _host(url: str) -> str:
    """Return the host of an address to which requests can be sent; of any other, nothing."""
    try:
        parts = urlsplit(url)
        _ = parts.port, httpx2.URL(url).host.encode("idna")
    except (ValueError, httpx2.InvalidURL):
        return ""
    return parts.hostname or "" if parts.scheme in ("http", "https") else ""


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"Cannot read {path}: {error}") from None


def leads_to_loopback(host: str) -> bool:
    """Return whether an IP address or a host name is of this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
