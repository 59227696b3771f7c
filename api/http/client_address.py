"""The address that a request comes from, also behind proxies."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from flask import request

from arkloop.api.http.current import settings


def client_address() -> str | None:
    """Return the address of the client as text; None if it is not known.

    `X-Forwarded-For` is what the sender says, so that it counts as far as trusted proxies have
    written it: from its end to the first address that is not one of theirs.
    """
    address = _normal(request.remote_addr or "")
    trusted = settings().trusted_proxies
    forwarded = request.headers.get("X-Forwarded-For", "").split(",") if trusted else []
    while address is not None and forwarded and _is_trusted(address, trusted):
        before = _normal(forwarded.pop().strip())
        if before is None:
            break
        address = before
    return address


def _is_trusted(address: str, trusted: Sequence[str]) -> bool:
    return any(ip_address(address) in network for network in _networks(tuple(trusted)))


@lru_cache(maxsize=4)
def _networks(texts: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, texts))


def _normal(text: str) -> str | None:
    """Return the address in its one spelling; None for anything else."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
