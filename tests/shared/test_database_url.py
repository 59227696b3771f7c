"""Forms of the database's URL."""

import re

import pytest
from psycopg import OperationalError, ProgrammingError, connect
from psycopg.pq import Conninfo
from sqlalchemy import make_url
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.database_url import CHOICES, NUMBERS, OPTIONS, InvalidDatabaseUrl, normalize


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgres://u:p@db1/name", "db1", None),
        ("postgresql://u:p@db1:5433/name", "db1", 5433),
        ("postgresql+psycopg://u:p@[::1]:5433/name", "::1", 5433),
        ("postgresql://u:p@/name?host=/run/postgresql", "/run/postgresql", None),
        ("postgresql://u:p@db1:5433,db2/name", "db1,db2", "5433,5432"),
        ("postgresql://u:p@[::1]:5433,db2:5434/name", "::1,db2", "5433,5434"),
        ("postgresql://u:p@/name?host=db1:5433", "db1", "5433"),
        ("postgresql://u:p@db0/name?host=[::1]:5433", "::1", "5433"),
        ("postgresql://u:p@/name?host=db1:5433&host=db2:5434", "db1,db2", "5433,5434"),
        ("postgresql://u:p@/name?host=db1,db2&port=5433,5434", "db1,db2", "5433,5434"),
        ("postgresql://u:p@db1,db2/name?port=5433", "db1,db2", "5433,5433"),
        ("postgresql://u:p@/name?host=/run/a,/run/b", "/run/a,/run/b", "5432,5432"),
    ],
)
def test_every_form_of_hosts_reaches_psycopg(url: str, host: str, port: object) -> None:
    """One host or several, in libpq's form or SQLAlchemy's, come out as psycopg's parameters."""
    _, args = PGDialect_psycopg().create_connect_args(make_url(normalize(url)))

    assert ("u", "p", "name") == (args["user"], args["password"], args["dbname"])
    assert (host, port) == (args["host"], args.get("port"))


def test_other_parameters_of_a_list_are_kept() -> None:
    """Rewriting the hosts changes nothing else, whatever characters the password has."""
    url = "postgresql://u:p%40/?,@a,b/name?sslmode=verify-full&sslrootcert=/etc/a%20b.pem"
    _, args = PGDialect_psycopg().create_connect_args(make_url(normalize(url)))

    assert ("p@/?,", "verify-full", "/etc/a b.pem") == (
        args["password"],
        args["sslmode"],
        args["sslrootcert"],
    )


@pytest.mark.parametrize(
    ("written", "password"),
    [("w1/a:b", "w1/a:b"), ("50%off", "50%off"), ("a b", "a b"), ("a%2Fb%25+", "a/b%+"), ("", "")],
)
def test_the_probe_of_workers_reads_each_password(written: str, password: str) -> None:
    """It gives the URL to libpq, which ends an unescaped password at a slash."""
    url = normalize(f"postgresql://u%40x:{written}@db1:5433/name")
    _, args = PGDialect_psycopg().create_connect_args(make_url(url))
    read = of_libpq(url)

    assert ("u@x", password) == (args["user"], args.get("password", ""))
    assert ("u@x", password, "db1") == (read["user"], read["password"] or "", read["host"])


@pytest.mark.parametrize(
    ("url", "folder", "port"),
    [
        ("postgresql://u:p@%2Frun%2Fpg:5433/name", "/run/pg", "5433"),  # as in libpq's docs
        ("postgresql://u:p@%2Fcloudsql%2Fp%3Aeu-1%3Adb/name", "/cloudsql/p:eu-1:db", "5432"),
        ("postgresql://u:p@/name?host=/cloudsql/p:eu-1:db", "/cloudsql/p:eu-1:db", None),
        ("postgresql://u:p@/name?host=/cloudsql/p:eu-1:db:5433", "/cloudsql/p:eu-1:db", "5433"),
    ],
)
def test_the_folder_of_a_socket_may_stand_for_the_host(
    url: str, folder: str, port: str | None
) -> None:
    """It may have colons, before those of a port."""
    url = normalize(url)
    _, args = PGDialect_psycopg().create_connect_args(make_url(url))
    read = of_libpq(url)

    assert (folder, port, "name") == (args["host"], args.get("port"), args["dbname"])
    assert (folder, port, "name") == (read["host"], read["port"], read["dbname"])


def of_libpq(url: str) -> dict[str, str | None]:
    """Return what libpq reads in a URL, which has no driver for it."""
    options = Conninfo.parse(url.replace("+psycopg", "", 1).encode())
    return {o.keyword.decode(): o.val.decode() if o.val is not None else None for o in options}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://u@db1/name", "must begin with postgresql://"),
        ("nonsense", "must begin with postgresql://"),
        ("postgresql://u:secret@db1:x/name", "'db1…' is not a host with a port"),
        ("postgresql://u:secret@db1:99999/name", "'db1…' is not a host with a port"),
        ("postgresql://u:secret/name", "'u…' is not a host with a port"),
        ("postgresql://u:secret%40db1:5432/name", "'u…' is not a host with a port"),
        ("postgresql://u%40secret%3Axdb1/name", "'u…' is not a host with a port"),
        ("postgresql://u:12,secret[x/name", "'u…' is not a host with a port"),
        ("postgresql://u:secret@db1,,db2/name", "'db1…' is not a host with a port"),
        ("postgresql://u:secret@/name?host=a:1&host=b:x", "'a…' is not a host with a port"),
        ("postgresql://u:secret@/name?host=/run/a&port=abc", "must have a port from 1 to 65535"),
        ("postgresql://u:secret@a,b/name?port=1,70000", "must have a port from 1 to 65535"),
        ("postgresql://u:se@cret@db1/name", "has a second @"),
        ("postgresql://u:se@cr,et:x@db1/name", "has a second @"),
        ("postgresql://u:se@cr/et@db1/name", "has a second @"),
        ("postgresql://u:se@cr?et@db1/name", "has a second @"),
        ("postgresql://u:se@c?port=ret@db1/name", "has a second @"),
        ("postgresql://db1/name?user=u@db1", "has a second @, or one in an option"),
        ("postgresql://u@db1/name?port=secret", "must have a port from 1 to 65535"),
        ("postgresql://u@db1/name?secr%26et=1", "has an option, which"),
        ("postgresql://u:secret@db1/name?schema=public", "has the option 'schema'"),
        ("postgresql://u:secret@a,b,c/name?port=1,2", "must have one port for each host"),
        (
            "postgresql://u:secret@a,b/name?target_session_attrs=prefer-standby",
            "target_session_attrs must be read-write",
        ),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_the_start(url: str, why: str) -> None:
    """Its error names the setting, says what is wrong, and does not repeat the password."""
    with pytest.raises(InvalidDatabaseUrl):
        normalize(url)
    with pytest.raises(InvalidSettings) as problems:
        Settings.from_env(
            {
                "ARKLOOP_DATABASE_URL": url,
                "ARKLOOP_REDIS_URL": "redis://",
                "ARKLOOP_JWT_SECRET": "x" * 32,
            }
        )

    assert str(problems.value).startswith(f"ARKLOOP_DATABASE_URL: {why}")
    assert "\n" not in str(problems.value)
    for part in ("secret", "se@c", "cr", "et", "ret"):
        assert not re.search(rf"\b{part}\b", str(problems.value))


@pytest.mark.parametrize("attrs", ["any", "primary", "read-write"])
def test_a_demand_for_a_server_that_writes_is_accepted(attrs: str) -> None:
    """The service asks for such a server in any case."""
    assert attrs in normalize(f"postgresql://u@a,b/name?target_session_attrs={attrs}")


def test_every_option_of_the_installed_library_is_accepted() -> None:
    """Only what psycopg would refuse at the first connection is refused at the start."""
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}

    assert set() == known - OPTIONS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name, choices in CHOICES.items()
            for value in (*choices, choices[-1].swapcase(), "foo", "Foo1")
        ),
        *((name, value) for name in sorted(NUMBERS) for value in ("1", "0", "x")),
    ],
)
def test_values_that_the_library_refuses_are_refused_at_the_start(name: str, value: str) -> None:
    """Otherwise each attempt to connect would fail, and look like an outage of the server."""
    options = {"sslmode": "require", "ssl_min_protocol_version": "TLSv1", name: value}
    with pytest.raises((OperationalError, ProgrammingError)) as refused:
        connect(host="127.0.0.1", port=1, **options)  # type: ignore[arg-type]  # texts
    is_invalid = "invalid" in str(refused.value) or "bad value" in str(refused.value)
    url = f"postgresql://u@h/name?{name}={value}"
    if is_invalid:
        with pytest.raises(InvalidDatabaseUrl, match=f"^{name} must be .*, is '{value}'$"):
            normalize(url)
    else:
        normalize(url)


def test_a_value_that_may_be_part_of_a_password_is_not_repeated() -> None:
    """An unescaped `?` in a password makes the rest of it options."""
    with pytest.raises(InvalidDatabaseUrl) as refused:
        normalize("postgresql://u@h/name?sslmode=s3cret/!#and the rest")
    assert "s3cret" not in str(refused.value)
