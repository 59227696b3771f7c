"""The service of the benchmarks: what is measured of its processes."""

import psutil
import psycopg
import pytest

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from bench.service import Service
from tests.waiting import eventually

pytestmark = pytest.mark.processes


def test_the_cpu_of_postgres_includes_connections_that_were_closed(
    postgres: EmbeddedPostgres,
) -> None:
    """What a process has used does not leave the sum when the process ends."""
    service = Service()
    service.postgres = postgres
    with psycopg.connect(postgres.url.replace("+psycopg", "")) as sql:
        backend = psutil.Process(sql.info.backend_pid)
        sql.execute("SELECT count(*) FROM generate_series(1, 3000000)")
        times = backend.cpu_times()
        used = times.user + times.system
        assert used > 0.1
        before = service.cpu("postgres")

    eventually(lambda: not backend.is_running())

    # The sum of other summands may be rounded otherwise; without those of the process it would
    # be less by `used`.
    assert service.cpu("postgres") > before - used / 2


def test_a_role_is_restarted_with_as_many_processes() -> None:
    """Clients find the fresh processes, and no others, as soon as it returns."""
    with Service() as service:
        before = {role: list(pids) for role, pids in service.pids.items()}
        for role in before:
            service.restart(role)

        assert [1, 1] == [len(pids) for pids in service.pids.values()]
        assert not [role for role, pids in before.items() if pids == service.pids[role]]
        [url] = service.urls
        service.wait_for_web(url)
