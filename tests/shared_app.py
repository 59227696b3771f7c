"""An app in the process of the tests: of a module's own, or shared by the modules of a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from flask import Flask

from arkloop.api.app import create_app
from arkloop.shared.config import Settings
from arkloop.shared.storage import connections as connections_module
from arkloop.shared.storage import postgres
from arkloop.shared.storage.connections import (
    REDIS_PAUSE_SECONDS,
    Connections,
    connect,
    connect_redis,
)
from arkloop.shared.storage.outage import Outage
from arkloop.shared.storage.postgres import REQUEST_TIMEOUTS, Timeouts
from tests.described_responses import DescribedResponses

#: Folders whose modules share a database, its connections and an app: connections are slow as long
#: as Postgres and SQLAlchemy meet each statement for the first time. Their tests look at orgs of
#: their own; a module that looks at the whole installation is marked with `own_database`.
SHARED = ("tests/api/",)
#: On a busy machine statements take long, and those of many callers wait for each other for long.
PATIENT = replace(REQUEST_TIMEOUTS, lock=30.0, statement=60.0, answer=70.0)
#: Tests of requests see that one waits for a lock no longer than in the service.
PATIENT_REQUESTS = replace(PATIENT, lock=REQUEST_TIMEOUTS.lock)


@dataclass(frozen=True)
class SharedApp:
    """An app with its stores, and the search for what is not in its description."""

    connections: Connections
    app: Flask
    described: DescribedResponses


def timeouts_of(request: pytest.FixtureRequest) -> Timeouts:
    """Return the limits of statements for the tests of a module."""
    folder = str(request.path.relative_to(request.config.rootpath))
    return PATIENT_REQUESTS if folder.startswith(SHARED) else PATIENT


@contextmanager
def _patient_redis() -> Iterator[None]:
    """Let clients of Redis that are made in the block wait for longer than a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections_module, "REDIS_TIMEOUT_SECONDS", 30.0)
        yield


def connect_patiently(settings: Settings, timeouts: Timeouts = PATIENT) -> Connections:
    """Connect as the service does, with time enough for statements and between them.

    A transaction may be idle for a third of the lease. Redis may take more than a second to answer
    on a busy machine, without which it is out of reach for the next two, and Postgres more than two
    to begin a session.
    """
    patient = replace(settings, lease_seconds=180)
    with _patient_redis(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(postgres.CONNECTING, "connect_timeout", 60)
        opened = connect(patient, application="tests", timeouts=timeouts)
    return replace(opened, settings=settings)


@pytest.fixture(scope="module", name="connections")
def patient_connections(settings: Settings) -> Iterator[Connections]:
    """Connections for modules that import it, whose requests wait for locks that a test holds.

    A request gives up after a second and a half, which a test may take on a busy machine.
    """
    opened = connect_patiently(settings)
    yield opened
    opened.close()


@contextmanager
def patient_with_redis(connections: Connections) -> Iterator[Connections]:
    """Yield the connections with a client of Redis, and its outages, of their own."""
    with _patient_redis():
        redis = connect_redis(connections.settings.redis_url)
    yield replace(connections, redis=redis, redis_outage=Outage(REDIS_PAUSE_SECONDS))
    redis.close()


@contextmanager
def shared_app(settings: Settings) -> Iterator[SharedApp]:
    """Open an app for modules that share it, for the length of the block."""
    opened = connect_patiently(settings, PATIENT_REQUESTS)
    with own_app(opened) as (app, described):
        yield SharedApp(opened, app, described)
    opened.close()


@contextmanager
def own_app(connections: Connections) -> Iterator[tuple[Flask, DescribedResponses]]:
    """Make an app for the length of the block, with the comparison of its responses."""
    app = create_app(connections=connections)
    described = DescribedResponses(app)
    try:
        yield app, described
    finally:
        for name in ("hub", "polls", "reports"):
            app.extensions[f"arkloop.{name}"].close()
