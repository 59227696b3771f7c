"""The catalog of an org, for its tests."""

from uuid import UUID

import pytest

from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.storage.connections import Connections
from tests.shared.catalog.org_catalog import SERVERS
from tests.stored_runs import StoredRuns


@pytest.fixture
def catalog(connections: Connections) -> Catalog:
    """The catalog of a process that has just begun."""
    return Catalog(connections, SERVERS)


@pytest.fixture
def org(stored: StoredRuns) -> UUID:
    return stored.actor.org_id
