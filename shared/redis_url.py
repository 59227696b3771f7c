"""The check of a Redis server's URL, so that a process with a wrong one ends with one line.

Only the standard library is used here: gunicorn's master reads the settings before gevent has
patched anything.
"""

import re
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = ("redis", "rediss", "unix")
INTEGERS = frozenset(
    {
        *("db", "socket_read_size", "max_connections", "health_check_interval"),
        *("ssl_min_version", "protocol"),
    }
)
NUMBERS = frozenset({"socket_timeout", "socket_connect_timeout", "timeout"})

_WRITTEN = "a / ? or # in the password is written as %2F, %3F or %23"


class InvalidRedisUrl(ValueError):
    """The message says what is wrong with the URL, and never repeats a part of its password."""


def check(url: str) -> None:
    """Refuse what the Redis client cannot read, or reads as something else.

    Options that it does not know are left to `server_checks`, which may import it.

    Raises:
        InvalidRedisUrl: another scheme, a port or a database that is no number, or such an option.
    """
    scheme, separator, _ = url.partition("://")
    if separator and "sentinel" in scheme:
        raise InvalidRedisUrl(
            "must be an address that leads to the primary, since Sentinel is not asked for it: see"
            " deploy/haproxy-redis.cfg"
        )
    if not separator or scheme not in SCHEMES:
        raise InvalidRedisUrl(f"must begin with {' or '.join(s + '://' for s in SCHEMES)}")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidRedisUrl("must have an IPv6 address in brackets, such as [::1]") from None
    path = unquote(parts.path)
    if scheme == "unix":
        if not path:
            raise InvalidRedisUrl("must have the path of a socket, such as unix:///run/redis.sock")
    else:
        _check_port(parts.netloc)
        if "@" in url[len(scheme + separator + parts.netloc) :]:
            # What stands before it may be a part of the password: nothing of it is repeated.
            raise InvalidRedisUrl(f"must have no @ after its host; {_WRITTEN}, an @ as %40")
        if not re.fullmatch(r"/?[0-9]*", path):
            raise InvalidRedisUrl("must end with the number of a database, such as /0, or without")
    for name, value in parse_qsl(parts.query):
        if name in INTEGERS and not re.fullmatch(r"[0-9]+", value):
            raise InvalidRedisUrl(f"must have an integer as {name}")
        if name in NUMBERS and not _is_seconds(value):
            raise InvalidRedisUrl(f"must have a number of seconds as {name}")


def verified(url: str, verifies: bool) -> str:
    """Return a URL of Redis that says whether certificates are verified, unless it says so itself.

    A platform that renews the URL by itself, with another password, lets nobody write that into it.
    """
    if verifies or not url.startswith("rediss://") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=none"


def _is_seconds(text: str) -> bool:
    """Return whether the client reads it as a length of time."""
    try:
        return 0 <= float(text) < float("inf")
    except ValueError:
        return False


def _check_port(place: str) -> None:
    """Refuse a port that is none: what stands there may be a part of the password."""
    address = place.rpartition("@")[2]
    if re.search(r"\s", address):
        raise InvalidRedisUrl("must have no space in its host and port")
    port = re.fullmatch(r"(\[.*\]|[^:]*)(?::(?P<number>[0-9]{1,5})?)?", address)
    if port is None or int(port["number"] or 1) not in range(1, 65536):
        raise InvalidRedisUrl(f"must have a port from 1 to 65535; {_WRITTEN}")
