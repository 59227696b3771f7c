"""The service of the benchmarks: what is measured of its processes."""

import psutil
import psycopg

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from bench.service import Service
from tests.waiting import eventually


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

    assert service.cpu("postgres") >= before
