"""Runs in the database."""

import pytest

from shared.storage.connections import Connections
from tests.clients import User
from tests.stored_runs import StoredRuns


@pytest.fixture
def stored(connections: Connections, alice: User) -> StoredRuns:
    """Call its methods for runs of an org of the test's own."""
    return StoredRuns.of(connections, alice)
