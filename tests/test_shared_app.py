"""The connections of the tests, which a busy machine does not break."""

import threading
from contextlib import closing
from dataclasses import replace

import pytest
from redis.connection import parse_url
from sqlalchemy import make_url, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.config import Settings
from chaos.system.fault_proxy import FaultProxy
from tests.shared_app import connect_patiently

pytestmark = pytest.mark.processes


def test_an_answer_of_redis_that_is_late_is_no_outage(settings: Settings) -> None:
    """Streams, limits and notifications are those of a service with Redis."""
    server = parse_url(settings.redis_url)
    with FaultProxy((server["host"], server["port"])) as proxy:
        url = settings.redis_url.replace(f":{server['port']}", f":{proxy.port}")
        with closing(connect_patiently(replace(settings, redis_url=url))) as connections:
            assert connections.ask_redis(lambda client: client.ping())
            proxy.stall()
            later = threading.Timer(1.5, proxy.pass_on)
            later.start()
            try:
                assert connections.ask_redis(lambda client: client.ping())
            finally:
                later.join()
            assert not connections.redis_outage.is_on


def test_a_session_of_postgres_that_begins_late_is_no_outage(
    settings: Settings, postgres: EmbeddedPostgres
) -> None:
    """Threads of the tests that connect for the first time do not fail."""
    with FaultProxy(postgres.sockets / ".s.PGSQL.5432") as proxy:
        database = make_url(settings.database_url).database
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{database}"
        with closing(connect_patiently(replace(settings, database_url=url))) as connections:
            proxy.stall()
            later = threading.Timer(3, proxy.pass_on)
            later.start()
            try:
                with connections.reading() as sql:
                    assert 1 == sql.scalar(text("SELECT 1"))
            finally:
                later.join()
