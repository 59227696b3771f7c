"""`ARKLOOP_ALLOWED_HOSTS`: requests for any other host name are refused.

A page of a web site whose name leads to this server (DNS rebinding) counts as this server's own
to a browser, so neither CORS nor cookies keep it out. The name in its `Host` header does. An IP
address is always accepted: no page can make a browser send one in place of its own name.

Without the setting any name is accepted, but it has to be one (RFC 9112, 3.2). And an address has
one spelling: rules of a proxy for `/v1/operator` would not hold for `//v1/operator`, nor for
`/v1/%6fperator`, of which gunicorn makes the same.
"""

import re
from collections.abc import Collection
from ipaddress import ip_address
from typing import cast
from urllib.parse import urlsplit

from flask import Flask, request
from werkzeug.sansio.utils import host_is_trusted

from arkloop.api.http.current import settings
from arkloop.api.http.observation import PROBES
from arkloop.shared.errors import BadRequest, Forbidden, NotFound

#: Of a path, where no client has anything to encode; what follows may be a name that needs it.
_BEGINNING = re.compile(r"(/v1)?(/[^/]*)?/?")
_ORIGIN = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_HOST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.%A-Za-z]+\])(:[0-9]*)?")


def register(app: Flask) -> None:
    """Check every request of the app, unknown paths included."""
    app.before_request(_check)


def _check() -> None:
    allowed = settings().allowed_hosts
    host: str | None = request.environ.get("HTTP_HOST")
    path: str = request.environ["PATH_INFO"]
    may_lack_host = request.environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    # Health checks by address, such as HAProxy's by default. Browsers always send a Host.
    is_check = host is None and may_lack_host and path in PROBES
    if allowed and not is_check and not _is_allowed(host or "", allowed):
        raise Forbidden("This host name is not allowed; see ARKLOOP_ALLOWED_HOSTS.")
    if host is None:
        if not may_lack_host:
            raise BadRequest()
    elif not _HOST.fullmatch(host):
        raise BadRequest()
    if path.startswith("//"):  # of which Werkzeug makes one slash
        raise NotFound()
    sent: str = request.environ.get("RAW_URI", path)
    if not sent.startswith(path) and not _begins_as_sent(path, sent):
        raise NotFound()


def _begins_as_sent(path: str, sent: str) -> bool:
    """Return whether the target of the request was sent as a path that begins as this one does."""
    beginning = cast(re.Match[str], _BEGINNING.match(path)).group()
    # A request to a proxy has the whole URL.
    return sent.startswith(beginning) or _ORIGIN.sub("", sent, count=1).startswith(beginning)


def _is_allowed(host: str, allowed: Collection[str]) -> bool:
    try:
        ip_address(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return host_is_trusted(host.lower(), allowed)
    return True
