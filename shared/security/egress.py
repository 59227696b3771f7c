"""The policy on which network addresses users' and models' URLs may lead to (SSRF).

Nothing here speaks HTTP. A client checks the text with `check_url`, asks
`resolve` once for each connection, and connects to what that returned: never
to the name again, whose answer may have changed since (DNS rebinding). Every
hop of a redirect is a new text.
"""

import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, Self
from urllib.parse import quote

MAX_URL_CHARACTERS = 4096

#: Every range of IANA's special-purpose registry, and what else is nobody's web server. Written
#: out: what `ipaddress` calls global differs from one release of Python to the next.
_REFUSED_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network; Linux takes 0.0.0.0 for itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared between a carrier and its customers; a cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the host below every machine of Azure
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
#: All else is refused by being outside: unspecified, loopback and IPv4-compatible (::/96), NAT64
#: (64:ff9b::/96, 64:ff9b:1::/48), discard (100::/64), segment routing (5f00::/16), unique local
#: (fc00::/7), link-local (fe80::/10), site-local (fec0::/10), multicast (ff00::/8).
_GLOBAL_IPV6 = IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address within
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)

#: Besides these every port from 1024 on: those below belong to other protocols.
_WEB_PORTS = {"http": 80, "https": 443}

_URL = re.compile(
    r"(?P<scheme>[^:/?#]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)"
    r"(?:\?(?P<query>[^#]*))?(?:#.*)?"
)
_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
#: A name that ends so is an IPv4 address to a resolver, in one of its old spellings at least.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
#: What may stand in a path or query as it is (RFC 3986); the rest is percent-encoded.
_UNQUOTED = "%/:@!$&'()*+,;=-._~?[]"

#: Settings, each with the networks of one policy.
ALLOWED_NETWORKS = "ARKLOOP_ALLOWED_NETWORKS"
FETCH_ALLOWED_NETWORKS = "ARKLOOP_FETCH_ALLOWED_NETWORKS"

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Returns what `socket.getaddrinfo` finds for a host and a port.
LookUp = Callable[[str, int], Sequence[tuple[Any, ...]]]


class Refused(Exception):
    """The address may not be asked. The message names no address and nothing that was answered."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`allowed`: networks that may be reached on any port although they are not public.

    `setting` is where the operator names them; refusals mention it.
    """

    allowed: tuple[Network, ...] = ()
    setting: str = ALLOWED_NETWORKS

    @classmethod
    def of(cls, networks: Iterable[str], setting: str = ALLOWED_NETWORKS) -> Self:
        """Build the policy that allows these networks, in CIDR notation.

        Raises:
            ValueError: a text is not a network.
        """
        return cls(tuple(ip_network(network) for network in networks), setting)

    def allows(self, address: Address) -> bool:
        """Return whether the operator has allowed a network of this address."""
        return any(address in network for network in self.allowed)


@dataclass(frozen=True, slots=True)
class CheckedUrl:
    """The parts of an address that passed; a client uses them, and never the text they came from.

    `host` is in lower case, without brackets and trailing dot; `path` and
    `query` are percent-encoded, `query` without its mark.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str

    @property
    def origin(self) -> str:
        """Scheme, host and, unless it is the scheme's own, port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _WEB_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"

    @property
    def text(self) -> str:
        """The address in one spelling, without the fragment."""
        return self.origin + self.path + (f"?{self.query}" if self.query else "")


def check_url(url: str, policy: Policy) -> CheckedUrl:
    """Take an address apart; nothing is resolved.

    A name may still lead to a forbidden address, on a port that only allowed
    networks have: `resolve` is the check that counts.

    Raises:
        Refused: it is not an http or https address of the public network.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise Refused(f"The address is longer than {MAX_URL_CHARACTERS} characters.")
    if _FORBIDDEN.search(url):
        raise Refused("The address contains a space, a backslash or a control character.")
    parts = _URL.fullmatch(url)
    if parts is None or parts["scheme"].lower() not in _WEB_PORTS:
        raise Refused("The address must begin with http:// or https://.")
    if "@" in parts["authority"]:
        raise Refused("The address must not contain a user name or password.")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if authority is None:
        raise Refused("The address does not have a valid host and port.")
    scheme = parts["scheme"].lower()
    port = int(authority["port"] or _WEB_PORTS[scheme])
    if authority["ipv6"] is not None and ":" not in authority["ipv6"]:
        raise Refused("Only an IPv6 address may be in brackets.")
    host = _checked_host(authority["ipv6"] or authority["name"] or "", port, policy)
    try:
        path = quote(parts["path"] or "/", safe=_UNQUOTED)
        query = quote(parts["query"] or "", safe=_UNQUOTED)
    except UnicodeEncodeError:
        raise Refused("The address is not valid Unicode.") from None
    return CheckedUrl(scheme, host, port, path, query)


def resolve(host: str, port: int, policy: Policy, look_up: LookUp | None = None) -> list[str]:
    """Resolve the host once; returns the addresses to connect to, in the resolver's order.

    `look_up` is called in place of `socket.getaddrinfo`.

    Raises:
        Refused: one of them is forbidden, or the host or port is.
        OSError: the name has no address, or the resolver failed.
    """
    host = _checked_host(host, port, policy)
    found = (look_up or _found)(host, port)
    addresses = dict.fromkeys(_unwrapped(ip_address(sockaddr[0])) for *_, sockaddr in found)
    for address in addresses:
        _check_address(address, port, policy)
    return [str(address) for address in addresses]


def _found(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


def _checked_host(host: str, port: int, policy: Policy) -> str:
    if not 1 <= port <= 65535:
        raise Refused("The address does not have a valid host and port.")
    if not host.isascii():
        # Their many spellings of one name (full-width digits and dots) are not worth the doubt.
        raise Refused(
            "A host name must be ASCII: write an international one in its xn-- (Punycode) form."
        )
    host = host.lower()
    if ":" in host:
        return str(_check_address(_ipv6(host), port, policy))
    name = host.removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # Decimal, octal, hexadecimal and short forms are IPv4 addresses to some readers only.
        return str(_check_address(_ipv4(host), port, policy))
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise Refused("The address does not have a valid host name.")
    if labels[-1] == "localhost":
        _check_address(IPv4Address("127.0.0.1"), port, policy)
    elif not policy.allowed:
        _check_port(port)
    return name


def _ipv6(text: str) -> Address:
    if "%" in text:
        raise Refused("An IPv6 address must not contain a zone.")
    try:
        return _unwrapped(IPv6Address(text))
    except ValueError:
        raise Refused("The address does not contain a valid IPv6 address.") from None


def _ipv4(text: str) -> Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise Refused("An IPv4 address must be written as four decimal numbers.") from None


def _unwrapped(address: Address) -> Address:
    # To the kernel ::ffff:127.0.0.1 is 127.0.0.1.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _check_address(address: Address, port: int, policy: Policy) -> Address:
    if policy.allows(address):
        return address
    if isinstance(address, IPv4Address):
        is_public = not any(address in network for network in _REFUSED_IPV4)
    else:
        is_public = address in _GLOBAL_IPV6 and not any(
            address in network for network in _REFUSED_IPV6
        )
    if not is_public or _is_own(address):
        raise Refused(
            "The address is not on the public network. The operator of this installation can"
            f" allow its network with {policy.setting}."
        )
    _check_port(port)
    return address


def _check_port(port: int) -> None:
    if port not in _WEB_PORTS.values() and port < 1024:
        raise Refused("The port must be 80, 443 or one from 1024 on.")


def _is_own(address: Address) -> bool:
    """Return whether the address is this machine's: packets to oneself have it as their source.

    Connecting a datagram socket sends nothing.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ip_address(probe.getsockname()[0]) == address
    except OSError:
        return False  # no way there at all
