"""Findings of `arkloop doctor` about URLs that list several hosts of Postgres."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import getaddrinfo
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.doctor import postgres_hosts
from arkloop.shared.ids import new_id
from chaos.system import fault_proxy
from tests.cli.doctor.examined import Examine, examine, own_redis
from tests.closed_port import closed_port
from tests.standby import Pair, replicated_postgres
from tests.waiting import eventually

pytestmark = pytest.mark.processes

__all__ = ["examine", "own_redis"]  # fixtures


def beat(server: EmbeddedPostgres, age: str) -> None:
    """Let the last heartbeat of workers be so old in this primary."""
    engine = create_engine(server.url)
    with engine.begin() as sql:
        sql.execute(text("DELETE FROM workers"))
        sql.execute(
            text(
                "INSERT INTO workers (id, hostname, pid, lock_key, seen_at)"
                " VALUES (:id, 'host', 1, 1, now() - CAST(:age AS interval))"
            ),
            {"id": new_id(), "age": age},
        )
    engine.dispose()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with replicated_postgres(tmp_path) as pair:
        yield pair


@pytest.fixture
def cluster(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name and port of the primary at 127.0.0.1, and of the standby at 127.0.0.2."""

    def resolve(name: str, *args: Any, **options: Any) -> list[Any]:
        addresses = ("127.0.0.1", "127.0.0.2") if name == "cluster" else (name,)
        return [one for address in addresses for one in getaddrinfo(address, *args, **options)]

    with ExitStack() as proxies:
        address = ("127.0.0.1", 0)
        for server in (pair.primary, pair.standby):
            listener = socket.create_server(address)
            monkeypatch.setattr(fault_proxy, "listening_socket", lambda found=listener: found)
            upstream = server.sockets / ".s.PGSQL.5432"
            proxy = proxies.enter_context(fault_proxy.FaultProxy(upstream))
            address = ("127.0.0.2", proxy.port)
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        yield f"cluster:{proxy.port}"


def test_a_standby_is_to_be_promoted_where_no_machine_reaches_the_primary(
    examine: Examine, tmp_path: Path
) -> None:
    """Every host of the URL is shown, in whichever order; to list them is no advice any more."""
    with replicated_postgres(tmp_path) as pair:
        pair.primary.stop()
        for servers in (pair.primary, pair.standby), (pair.standby, pair.primary):
            report = examine(ARKLOOP_DATABASE_URL=pair.url(*servers))

            assert ["postgres"] == report.failed()
            [(_, shown)] = report.of("postgres")
            assert f"{pair.standby.sockets}:5432: is a standby" in shown
            assert f"{pair.primary.sockets}:5432: No such file" in shown
            advice = f"See whether {pair.primary.sockets}:5432 is up for other machines"
            assert report.advice("postgres").startswith(advice)


def test_a_name_that_is_gone_is_that_of_a_lost_primary(examine: Examine, tmp_path: Path) -> None:
    """A name service can forget a host that is down, and the standby is there all the same."""
    with replicated_postgres(tmp_path) as pair:
        pair.primary.stop()
        url = pair.url(pair.primary, pair.standby)
        url = url.replace(str(pair.primary.sockets), "db1.invalid")
        report = examine(ARKLOOP_DATABASE_URL=url)

    assert ["postgres"] == report.failed()
    assert report.advice("postgres").startswith("See whether db1.invalid:5432 is up for other")
    assert "or promote a standby" in report.advice("postgres")


def test_hosts_that_fail_in_several_ways_have_an_advice_each(examine: Examine) -> None:
    """Each names the variable of the URL."""
    hosts = f"db1.invalid:5432,127.0.0.1:{closed_port()}"
    report = examine(ARKLOOP_DATABASE_URL=f"postgresql://postgres@{hosts}/runs")

    assert ["postgres"] == report.failed()
    advice = report.advice("postgres")
    assert "Correct the host in ARKLOOP_DATABASE_URL" in advice
    assert "correct host and port in ARKLOOP_DATABASE_URL" in advice


def test_no_standby_is_to_be_promoted_beside_a_primary(examine: Examine, tmp_path: Path) -> None:
    """A primary that a full disk has made read-only would accept writes again beside it."""
    with replicated_postgres(tmp_path) as pair:
        engine = create_engine(pair.primary.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as sql:
            sql.execute(text("ALTER SYSTEM SET default_transaction_read_only = on"))
            sql.execute(text("SELECT pg_reload_conf()"))
        engine.dispose()
        both = pair.url(pair.standby, pair.primary)
        eventually(lambda: ["postgres"] == examine(ARKLOOP_DATABASE_URL=both).failed())
        advice = examine(ARKLOOP_DATABASE_URL=both).advice("postgres")

    assert advice.startswith("default_transaction_read_only is on")
    assert "Promote" not in advice


@pytest.mark.parametrize("is_promoted_in_use", [False, True])
def test_primaries_beside_each_other_are_found(
    examine: Examine, tmp_path: Path, is_promoted_in_use: bool
) -> None:
    """The one with fresh heartbeats is in use, also where it is the former one; one server under
    two addresses is no finding.
    """
    with replicated_postgres(tmp_path) as pair:
        both = pair.url(pair.primary, pair.standby)
        assert [] == examine(ARKLOOP_DATABASE_URL=both).of("postgres hosts")
        pair.promote()
        twice = pair.url(pair.primary, pair.primary)
        assert [] == examine(ARKLOOP_DATABASE_URL=twice).of("postgres hosts")
        used, other = pair.primary, pair.standby
        if is_promoted_in_use:
            used, other = other, used
        beat(used, "0 s")
        beat(other, "5 min")
        report = examine(ARKLOOP_DATABASE_URL=both)

    assert ["postgres hosts"] == report.failed()
    [(_, shown)] = report.of("postgres hosts")
    assert f"{pair.primary.sockets}:5432 (timeline 1, last heartbeat of a worker " in shown
    assert f"{pair.standby.sockets}:5432 (timeline 2, last heartbeat of a worker " in shown
    advice = report.advice("postgres hosts")
    assert advice.startswith(f"Workers write to {used.sockets}:5432 now. ")
    assert str(other.sockets) not in advice
    assert "decide whose data to keep before you stop one" in advice


def test_primaries_that_hide_their_log_are_found(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing shows then which of them was promoted, as on Aurora, nor which of them is in use."""
    monkeypatch.setattr(postgres_hosts, "_TIMELINE", "SELECT 1 / 0")
    with replicated_postgres(tmp_path) as pair:
        pair.promote()
        report = examine(ARKLOOP_DATABASE_URL=pair.url(pair.primary, pair.standby))

    assert ["postgres hosts"] == report.failed()
    advice = report.advice("postgres hosts")
    assert advice.startswith("Each may have what the others lack: decide whose data to keep")


def test_primaries_behind_one_name_are_found(examine: Examine, pair: Pair, cluster: str) -> None:
    """A process may be led to either of them."""
    url = f"postgresql://postgres@{cluster}/postgres"
    assert [] == examine(ARKLOOP_DATABASE_URL=url).of("postgres hosts")
    pair.promote()
    report = examine(ARKLOOP_DATABASE_URL=url)

    assert ["postgres hosts"] == report.failed()
    [(_, shown)] = report.of("postgres hosts")
    assert f"{cluster} at 127.0.0.1 (timeline 1)" in shown
    assert f"{cluster} at 127.0.0.2 (timeline 2)" in shown


def test_a_standby_is_not_to_blame_beside_a_primary_of_its_name(
    examine: Examine, pair: Pair, cluster: str
) -> None:
    """A primary that admits nobody, as one that is full does, needs no other URL."""
    (pair.primary.data / "pg_hba.conf").write_text("local template1 all trust\n")
    engine = create_engine(pair.primary.url)
    with engine.begin() as sql:
        sql.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    url = f"postgresql://postgres@{cluster}/postgres"
    eventually(lambda: ["postgres"] == examine(ARKLOOP_DATABASE_URL=url).failed())
    report = examine(ARKLOOP_DATABASE_URL=url)

    [(_, shown)] = report.of("postgres")
    assert f"{cluster} at 127.0.0.2: is a standby" in shown
    advice = "Allow this user, address and encryption in pg_hba.conf; see ARKLOOP_DATABASE_URL."
    assert advice == report.advice("postgres")


def test_one_server_may_have_an_address_of_each_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name such as `localhost` leads to one host; a list of addresses does to several."""
    found = [(0, 0, 0, "", (address, 0)) for address in ("::1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    assert not postgres_hosts.are_several("postgresql://localhost/runs")
    assert postgres_hosts.are_several("postgresql:///runs?hostaddr=10.0.0.1,10.0.0.2")
