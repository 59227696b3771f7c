"""`ARKLOOP_ALLOWED_HOSTS`: requests for any other host name are refused.

A page of a web site whose name leads to this server (DNS rebinding) counts as this server's own
to a browser, so neither CORS nor cookies keep it out. The name in its `Host` header does. An IP
address is always accepted: no page can make a browser send one in place of its own name.

Without the setting any name is accepted, but it has to be one (RFC 9112, 3.2). And an address has
one spelling: rules of a proxy for `/v1/operator` would not hold for `//v1/operator`.
"""

import re
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Flask, request
from werkzeug.sansio.utils import host_is_trusted

from arkloop.api.http.current import settings
from arkloop.shared.errors import BadRequest, Forbidden, NotFound

_HOST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.%A-Za-z]+\])(:[0-9]*)?")


def register(app: Flask) -> None:
    """Check every request of the app, unknown paths included."""
    app.before_request(_check)


def _check() -> None:
    allowed = settings().allowed_hosts
    host: str | None = request.environ.get("HTTP_HOST")
    if allowed and not _is_allowed(host or "", allowed):
        raise Forbidden("This host name is not allowed; see ARKLOOP_ALLOWED_HOSTS.")
    if host is None:
        if request.environ["SERVER_PROTOCOL"] != "HTTP/1.0":
            raise BadRequest()
    elif not _HOST.fullmatch(host):
        raise BadRequest()
    if request.environ["PATH_INFO"].startswith("//"):  # of which Werkzeug makes one slash
        raise NotFound()


def _is_allowed(host: str, allowed: Collection[str]) -> bool:
    try:
        ip_address(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return host_is_trusted(host.lower(), allowed)
    return True
