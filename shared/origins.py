"""Origins, as browsers write them: `https://runs.example.com`."""

import contextlib
import re
import socket
from ipaddress import IPv6Address

ORIGIN = re.compile(
    r"https?://([a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
)
_SAFE = re.compile(r"https:|http://(localhost|127(\.[0-9]+){3}|\[::1\])(:|\Z)")
#: A host whose end is a number, in decimal or hexadecimal, is an IPv4 address to browsers.
_IPV4 = re.compile(r"//(([a-z0-9_.-]*\.)?([0-9]+|0x[0-9a-f]*))(:|\Z)")
_DEFAULT_PORT = re.compile(r"(http://.*):80|(https://.*):443")


def as_sent(origin: str) -> str:
    """Return the form of an origin that browsers send: without the default port of its scheme, with
    the shortest form of an IPv6 address, and with four decimal numbers for an IPv4 address.
    """
    if is_default := _DEFAULT_PORT.fullmatch(origin):
        origin = is_default[1] or is_default[2]
    if address := re.search(r"\[(.*)\]", origin):
        with contextlib.suppress(ValueError):  # no browser opens it
            return origin.replace(address[1], _shortest(IPv6Address(address[1])))
    if address := _IPV4.search(origin):
        with contextlib.suppress(OSError):  # no browser opens it
            usual = socket.inet_ntoa(socket.inet_aton(address[1]))
            return origin[: address.start(1)] + usual + origin[address.end(1) :]
    return origin


def _shortest(address: IPv6Address) -> str:
    if address.ipv4_mapped is None:
        return str(address)
    high, low = divmod(int(address.ipv4_mapped), 1 << 16)
    return f"::ffff:{high:x}:{low:x}"  # as `str` until Python 3.12


def problem_of_public_url(url: str) -> str | None:
    """Return why an origin is none at which people log in; only loopback needs no TLS."""
    if not ORIGIN.fullmatch(url):
        return f"{url!r} is not an origin such as https://runs.example.com, in lower case"
    if not _SAFE.match(url):
        return "must begin with https://, except on loopback"
    return None
