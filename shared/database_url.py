"""The database's URL: checked once, and brought into the one form that SQLAlchemy reads.

Only the standard library is used here: gunicorn's master reads the settings before gevent has
patched anything.
"""

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
DRIVER = "postgresql+psycopg"
#: The service writes, so it never connects to a standby.
SESSION_ATTRS = ("any", "primary", "read-write")

#: What libpq knows, up to its version 18. Other libraries have others, such as Prisma's `schema`.
OPTIONS = frozenset(
    {
        *("application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname"),
        *("fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "host", "hostaddr"),
        *("keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval"),
        *("krbsrvname", "load_balance_hosts", "max_protocol_version", "min_protocol_version"),
        *("oauth_client_id", "oauth_client_secret", "oauth_issuer", "oauth_scope", "options"),
        *("passfile", "password", "port", "replication", "require_auth", "requirepeer"),
        *("scram_client_key", "scram_server_key", "service", "servicefile", "sslcert"),
        *("sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkey", "sslkeylogfile"),
        *("sslmode", "sslnegotiation", "sslpassword", "sslrootcert", "sslsni"),
        *("ssl_max_protocol_version", "ssl_min_protocol_version", "target_session_attrs"),
        *("tcp_user_timeout", "user"),
    }
)

_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
#: The values of options that have few: libpq would report another one only as it connects, as if
#: the server were away.
CHOICES = {
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer", "require"),
    "load_balance_hosts": ("disable", "random"),
    "sslcertmode": ("disable", "allow", "require"),
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "ssl_max_protocol_version": _VERSIONS,
    "ssl_min_protocol_version": _VERSIONS,
}
#: Of these alone libpq ignores the case.
_IN_ANY_CASE = frozenset({"ssl_max_protocol_version", "ssl_min_protocol_version"})
#: Options that are whole numbers.
NUMBERS = frozenset(
    {
        *("connect_timeout", "keepalives", "keepalives_count", "keepalives_idle"),
        *("keepalives_interval", "tcp_user_timeout"),
    }
)

# As SQLAlchemy splits it: a password may contain anything but "@".
_PARTS = re.compile(
    r"(?P<scheme>[^:]*)://"
    r"(?P<user>[^:/@]*(?::[^@]*)?@)?(?P<hosts>[^/?]*)(?P<database>/[^?]*)?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
# A folder may have colons: Cloud SQL's is /cloudsql/project:region:instance.
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|/.*?|[^/:\[\]]+)?(?::(?P<port>[0-9]{1,5}))?")

#: What an option may be called: only such a name is repeated, since it is no part of a password.
_NAME = re.compile(r"[a-z_]{1,40}")
#: What a value of an option may be to be repeated, likewise.
_VALUE = re.compile(r"[A-Za-z0-9_.-]{0,20}")


class InvalidDatabaseUrl(ValueError):
    """The message says what is wrong with the URL, and never repeats its password."""


def normalize(url: str) -> str:
    """Return the URL with its driver, a list of hosts or a socket's folder as
    `?host=a,b&port=1,2`, and user and password escaped.

    So both SQLAlchemy and libpq, which the probe of workers uses, read it.

    Lists are accepted in libpq's form (`//a:1,b:2/db`) and in SQLAlchemy's (`?host=a:1&host=b:2`).

    Raises:
        InvalidDatabaseUrl: another scheme, an address that is malformed, an option that libpq does
            not know, or with a value that it would refuse, or a demand for a standby.
    """
    parts = _PARTS.fullmatch(url)
    if parts is None or parts["scheme"] not in SCHEMES:
        raise InvalidDatabaseUrl(f"must begin with {' or '.join(s + '://' for s in SCHEMES)}")
    if "@" in url[parts.start("hosts") :]:
        # What stands before it may be a part of the password: nothing of it is repeated.
        raise InvalidDatabaseUrl(
            "has a second @, or one in an option: there, and in a password, it is written as %40"
        )
    query = parse_qsl(parts["query"] or "", keep_blank_values=True)
    for name, value in query:
        if name not in OPTIONS:
            named = f"the option {name!r}" if _NAME.fullmatch(name) else "an option"
            raise InvalidDatabaseUrl(f"has {named}, which Postgres' library lacks")
        if name == "port" and not all(map(_is_port, value.split(","))):
            raise InvalidDatabaseUrl("must have a port from 1 to 65535")
        if name in CHOICES and value and not _is_choice(name, value):
            *first, last = CHOICES[name]
            raise InvalidDatabaseUrl(
                f"{name} must be {', '.join(first)} or {last}, is {_short(value)}"
            )
        if name in NUMBERS and not re.fullmatch(r"-?[0-9]{1,9}", value):
            raise InvalidDatabaseUrl(f"{name} must be a whole number, is {_short(value)}")
        if name == "target_session_attrs" and value not in SESSION_ATTRS:
            raise InvalidDatabaseUrl(
                f"target_session_attrs must be read-write, is {value!r}: the service writes"
            )
    addresses = _addresses(unquote(parts["hosts"]).split(","))  # libpq's //%2Frun%2Fpostgresql/db
    is_folder = addresses[0][0].startswith("/")
    in_query = [value for name, value in query if name == "host"]
    if in_query:
        addresses = _addresses([host for value in in_query for host in value.split(",")])
    user = _escaped(parts["user"] or "")
    # SQLAlchemy reads a port behind the host in the query; libpq takes it for a part of the name.
    if len(addresses) == 1 and not is_folder and not (in_query and addresses[0][1]):
        return f"{DRIVER}://{user}{url[parts.start('hosts') :]}"
    ports = _ports([value for name, value in query if name == "port"], addresses)
    query = [(name, value) for name, value in query if name not in ("host", "port")]
    query += [("host", ",".join(host for host, _ in addresses)), ("port", ",".join(ports))]
    database = parts["database"] or ""
    return f"{DRIVER}://{user}{database}?{urlencode(query, quote_via=quote)}"


def _escaped(user: str) -> str:
    """Escape the user and the password before the hosts: libpq ends a password at `/`."""
    name, colon, password = user.removesuffix("@").partition(":")
    at = "@" if user else ""
    return quote(unquote(name), safe="") + colon + quote(unquote(password), safe="") + at


def _is_choice(name: str, value: str) -> bool:
    if name in _IN_ANY_CASE:
        return value.lower() in map(str.lower, CHOICES[name])
    return value in CHOICES[name]


def _short(value: str) -> str:
    """Quote a value, without what may be the rest of a password."""
    return repr(value) if _VALUE.fullmatch(value) else "another text"


def _addresses(texts: list[str]) -> list[tuple[str, str]]:
    """Return pairs of host and port, each perhaps empty."""
    addresses = []
    for text in texts:
        address = _ADDRESS.fullmatch(text)
        is_empty = len(texts) > 1 and not text
        if address is None or is_empty or not _is_port(address["port"] or ""):
            # Without the @ before it, a user with a password stands where the host is looked for.
            name = re.split("[:@]", texts[0])[0]
            shown = name if [name] == texts else f"{name}…"
            raise InvalidDatabaseUrl(f"{shown!r} is not a host with a port, such as db1:5432")
        addresses.append(((address["host"] or "").strip("[]"), address["port"] or ""))
    return addresses


def _is_port(text: str) -> bool:
    """Return whether it is the number of a port, or empty: then it is the default one."""
    return not text or (re.fullmatch(r"[0-9]{1,5}", text) is not None and 0 < int(text) < 65536)


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
