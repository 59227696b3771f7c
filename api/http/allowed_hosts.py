"""`ARKLOOP_ALLOWED_HOSTS`: requests for any other host name are refused.

A page of a web site whose name leads to this server (DNS rebinding) counts as this server's own
to a browser, so neither CORS nor cookies keep it out. The name in its `Host` header does. An IP
address is always accepted: no page can make a browser send one in place of its own name.
"""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Flask, request
from werkzeug.sansio.utils import host_is_trusted

from arkloop.api.http.current import settings
from arkloop.shared.errors import Forbidden


def register(app: Flask) -> None:
    """Check every request of the app, unknown paths included."""
    app.before_request(_check)


def _check() -> None:
    allowed = settings().allowed_hosts
    if allowed and not _is_allowed(request.headers.get("Host", ""), allowed):
        raise Forbidden("This host name is not allowed; see ARKLOOP_ALLOWED_HOSTS.")


def _is_allowed(host: str, allowed: Collection[str]) -> bool:
    try:
        ip_address(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return host_is_trusted(host.lower(), allowed)
    return True
