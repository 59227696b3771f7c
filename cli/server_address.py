"""Which server the command line talks to, and with which key."""

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click

DEFAULT_URL = "http://127.0.0.1:8080"


class ServerAddress(NamedTuple):
    """The base URL, without a slash at its end, and an API key or access token."""

    url: str
    key: str

    @property
    def is_loopback(self) -> bool:
        return _is_loopback(self.url)


def find_server(environ: Mapping[str, str] | None = None) -> ServerAddress:
    """ARKLOOP_URL and ARKLOOP_API_KEY; what is missing comes from the dev server's folder.

    The folder is ARKLOOP_DATA, `.arkloop` by default. Its key is for a server on
    this machine: it is never sent to another one.

    Raises:
        click.ClickException: the message says what to do.
    """
    environ = os.environ if environ is None else environ
    folder = Path(environ.get("ARKLOOP_DATA") or ".arkloop")
    url = (environ.get("ARKLOOP_URL") or _read(folder / "url") or DEFAULT_URL).strip().rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.ClickException(f"ARKLOOP_URL must look like https://host:port, is {url!r}.")
    key = environ.get("ARKLOOP_API_KEY", "").strip()
    if not key and _is_loopback(url):
        key = _read(folder / "api-key") or ""
    if not key:
        advice = "set ARKLOOP_API_KEY"
        if _is_loopback(url):
            advice += f", or start `arkloop dev`: there is no {folder / 'api-key'}"
        raise click.ClickException(f"No API key for {url}: {advice}.")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise click.ClickException("The API key has characters that no key has; check it.")
    return ServerAddress(url, key)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"Cannot read {path}: {error}") from None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
