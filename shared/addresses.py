"""Addresses of servers, as settings name them: what no client can use is found at the start."""

import contextlib
import re
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

import idna

#: A path, without a query and with spaces percent-encoded.
PATH = "(/[^?# ]*)?"

_BEGINNING = re.compile(
    r"https?://([^/?#@]*@)?(\[(?P<ipv6>[^\[\]/?#@]*)\]|(?P<name>[\w-]+(\.[\w-]+)*\.?))"
    r"(:(?P<port>[0-9]{0,5}))?(?=[/?#]|\Z)"
)
_IPV4 = re.compile(r"[0-9]+(\.[0-9]+){3}")
_PORTS = {"http": 80, "https": 443}


def is_usable(url: str, rest: str = PATH) -> bool:
    """Return whether a client can connect to what the address names, as far as its text shows.

    `rest` is the form of what follows the port. Names of containers may have an underscore.
    """
    if not url.isprintable():
        return False
    found = _BEGINNING.match(url)
    if found is None or not re.fullmatch(rest, url[found.end() :]):
        return False
    try:
        urlsplit(url)  # or the first reader of a part raises it
        if found["ipv6"] is not None:
            IPv6Address(found["ipv6"])
        elif _IPV4.fullmatch(found["name"]):
            IPv4Address(found["name"])
        elif found["name"].isascii():
            found["name"].encode("idna")  # as the resolver is asked for it
        else:
            idna.encode(found["name"].lower())  # as the client of models has it
    except ValueError:
        return False
    return int(found["port"] or 1) in range(1, 65_536)


def host_and_port(url: str) -> tuple[str | None, int | None]:
    """Return host and port of an address, without what else it contains; None for what it lacks."""
    parts = urlsplit(url)
    with contextlib.suppress(ValueError):  # of an address that no client can use
        return parts.hostname, parts.port or _PORTS.get(parts.scheme)
    return parts.hostname, None
