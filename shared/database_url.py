"""The database's URL: checked once, and brought into the one form that SQLAlchemy reads.

Only the standard library is used here: gunicorn's master reads the settings before gevent has
patched anything.
"""

import re
from urllib.parse import parse_qsl, quote, urlencode

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
DRIVER = "postgresql+psycopg"
#: The service writes, so it never connects to a standby.
SESSION_ATTRS = ("any", "primary", "read-write")

# As SQLAlchemy splits it: a password may contain anything but "@".
_PARTS = re.compile(
    r"(?P<scheme>[^:]*)://"
    r"(?P<user>[^:/@]*(?::[^@]*)?@)?(?P<hosts>[^/?]*)(?P<database>/[^?]*)?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|/[^:]*|[^/:\[\]]+)?(?::(?P<port>[0-9]{1,5}))?")


class InvalidDatabaseUrl(ValueError):
    """The message says what is wrong with the URL, and never repeats its password."""


def normalize(url: str) -> str:
    """Return the URL with its driver, and with a list of hosts as `?host=a,b&port=1,2`.

    Lists are accepted in libpq's form (`//a:1,b:2/db`) and in SQLAlchemy's (`?host=a:1&host=b:2`).

    Raises:
        InvalidDatabaseUrl: another scheme, an address that is malformed, or a demand for a standby.
    """
    parts = _PARTS.fullmatch(url)
    if parts is None or parts["scheme"] not in SCHEMES:
        raise InvalidDatabaseUrl(f"must begin with {' or '.join(s + '://' for s in SCHEMES)}")
    query = parse_qsl(parts["query"] or "", keep_blank_values=True)
    for name, value in query:
        if name == "target_session_attrs" and value not in SESSION_ATTRS:
            raise InvalidDatabaseUrl(
                f"target_session_attrs must be read-write, is {value!r}: the service writes"
            )
    addresses = _addresses(parts["hosts"].split(","))
    in_query = [value for name, value in query if name == "host"]
    if in_query:
        addresses = _addresses([host for value in in_query for host in value.split(",")])
    if len(addresses) == 1:
        return f"{DRIVER}://{url.partition('://')[2]}"
    ports = _ports([value for name, value in query if name == "port"], addresses)
    query = [(name, value) for name, value in query if name not in ("host", "port")]
    query += [("host", ",".join(host for host, _ in addresses)), ("port", ",".join(ports))]
    database = parts["database"] or ""
    return f"{DRIVER}://{parts['user'] or ''}{database}?{urlencode(query, quote_via=quote)}"


def _addresses(texts: list[str]) -> list[tuple[str, str]]:
    """Return pairs of host and port, each perhaps empty."""
    addresses = []
    for text in texts:
        address = _ADDRESS.fullmatch(text)
        is_empty = len(texts) > 1 and not text
        if address is None or is_empty or int(address["port"] or 1) not in range(1, 65536):
            raise InvalidDatabaseUrl(f"{text!r} is not a host with a port, such as db1:5432")
        addresses.append(((address["host"] or "").strip("[]"), address["port"] or ""))
    return addresses


def _ports(listed: list[str], addresses: list[tuple[str, str]]) -> list[str]:
    """Return one for each host; those of the parameter `port`, where it is given, as in libpq."""
    if not listed:
        return [port or "5432" for _, port in addresses]
    ports = ",".join(listed).split(",")
    if len(ports) == 1:
        ports *= len(addresses)
    if len(ports) != len(addresses) or any(port for _, port in addresses):
        raise InvalidDatabaseUrl("must have one port for each host")
    return ports
