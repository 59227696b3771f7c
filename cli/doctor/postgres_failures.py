"""Reasons why Postgres executes no statement, and what to do about each."""

from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from arkloop.cli.doctor import postgres_hosts
from arkloop.cli.doctor.findings import Finding, fail
from arkloop.cli.doctor.postgres_hosts import Host
from arkloop.cli.operator.database import place

SLOW = "A table is locked, or Postgres is too slow: look at pg_stat_activity."
_STANDBY = "Point {} to the primary, or list all hosts of the cluster in it."
#: A primary that this machine alone does not reach would accept writes beside a promoted standby.
_PROMOTE = (
    "See whether {1} is up for other machines: if so, correct {0}, or the network or name service"
    " of this one; if not, start the primary or promote a standby. No host in {0} accepts writes."
)
_NAME = "Correct the host in {}, or the name service of this machine."
_CERTIFICATE_OF_ANOTHER = (
    "Name a host in {} that the server's certificate contains, or replace the certificate."
)
_REJECTED_CERTIFICATE = (
    "Renew the server's certificate if it has expired; else name the file of its authority as"
    " sslrootcert in {}."
)
#: What a message of libpq means, and what to do. The first that occurs in it counts.
_CAUSES = (
    ("session is read-only", _STANDBY),
    ("in hot standby mode", _STANDBY),
    ("password", "Correct user and password in {}."),
    ("no pg_hba.conf entry", "Allow this user, address and encryption in pg_hba.conf; see {}."),
    (
        "too many clients",
        "Raise max_connections, lower ARKLOOP_DATABASE_POOL_SIZE or use a pooler.",
    ),
    ("remaining connection slots", "Raise max_connections or lower ARKLOOP_DATABASE_POOL_SIZE."),
    (
        "too many connections",
        "Raise the CONNECTION LIMIT of the role or database, or lower ARKLOOP_DATABASE_POOL_SIZE.",
    ),
    ("not permitted to log in", "ALTER ROLE … LOGIN, or correct the user in {}."),
    ("No space left", "Free space on its disk."),
    ("could not write", "Free space on its disk; its log has the reason."),
    ("starting up", "Wait until it has started: after a crash it reads its WAL first."),
    ("in recovery mode", "Wait until it has recovered from its crash; its log has the reason."),
    ("does not match host name", _CERTIFICATE_OF_ANOTHER),
    ("certificate verify failed", _REJECTED_CERTIFICATE),
    ("root certificate file", "Correct sslrootcert in {}: no authority can be read there."),
    ("private key file", "Correct sslkey in {}, or who may read that file."),
    ("certificate file", "Correct sslcert in {}: no certificate can be read there."),
    ("server login", "The pooler does not reach Postgres: start that, or correct its settings."),
    ("does not exist", "Create it, or correct {}."),
    ("resolve host", _NAME),
    ("translate host", _NAME),
    ("canceling statement", SLOW),
    ("SSL", "Correct sslmode and the certificates in {}."),
)
_SET_READ_ONLY = (
    "default_transaction_read_only is on, though it is the primary: vendors set it on a full disk."
    " Free space, or switch it off."
)
_AT_TARGET = (
    "Recovery has reached its target and waits: if the data is that of the right moment, SELECT"
    " pg_wal_replay_resume(); else stop it, and recover to another one."
)
_SERVERS_WORD = "Postgres, or a pooler before it, says so: its log has more."
_ELSE = "Start it, or correct host and port in {}; see whether a firewall is in between."
#: Advice about a host that this machine does not reach, whatever others do.
_AWAY = (_NAME, _ELSE)


def unreachable(name: str, variable: str, url: str, error: DBAPIError) -> Finding:
    """Explain why a statement could not be executed; libpq quotes no password."""
    if postgres_hosts.are_several(url):
        hosts = postgres_hosts.look_at(url)
        if not any(host.accepts_writes for host in hosts):
            shown = "; ".join(f"{host.place}: {_state(host)}" for host in hosts)
            return fail(name, shown, _of_each(hosts, variable))
    advice = _advice(error.orig)
    if advice is _STANDBY:
        [host, *others] = postgres_hosts.look_at(url)
        advice = _STANDBY if others else _why_read_only(host) or _STANDBY
    return fail(name, f"{place(url)}: {first_line(error)}", advice.format(variable))


def _state(host: Host) -> str:
    if host.error is None:
        return "is a standby" if host.is_standby else "is read-only"
    # Without the address, which libpq puts before the reason.
    return _first_line(host.error).rpartition(" failed: ")[2]


def _of_each(hosts: Sequence[Host], variable: str) -> str:
    """Return what to do about hosts none of which accepts writes, each advice once."""
    each = dict.fromkeys(_advice_for(host) for host in hosts)
    if each.keys() <= {_PROMOTE, *_AWAY} and _PROMOTE in each:
        each = {_PROMOTE: None}  # to start the primary, or to find it, is a part of it
    else:
        each.pop(_PROMOTE, None)  # a primary is there: a second one would accept writes beside it
    away = [host.place for host in hosts if _advice_for(host) in _AWAY]
    lost = " or ".join(away) or "the primary"
    return " ".join(advice.format(variable, lost) for advice in each)


def _advice_for(host: Host) -> str:
    return _advice(host.error) if host.error else _why_read_only(host) or _PROMOTE


def _advice(error: BaseException | None) -> str:
    advice = next((advice for part, advice in _CAUSES if part in str(error)), None)
    return advice or (_SERVERS_WORD if _has_responded(error) else _ELSE)


def _why_read_only(host: Host) -> str | None:
    """Explain why a server accepts no writes; None: it is a standby, or does not say."""
    if host.is_standby:
        return _AT_TARGET if host.is_at_target else None
    return _SET_READ_ONLY if host.is_read_only else None


def _has_responded(error: BaseException | None) -> bool:
    """Return whether the error is a server's: libpq's own have neither a code nor its severity."""
    return getattr(error, "sqlstate", None) is not None or "FATAL:" in str(error)


def first_line(error: DBAPIError) -> str:
    return _first_line(error.orig)


def _first_line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0]
