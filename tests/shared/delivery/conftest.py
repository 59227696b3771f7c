"""The settings of deliveries, and an org that has some, for their tests."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from tests import stored_deliveries
from tests.shared.delivery.delivering_org import Org
from tests.stored_runs import StoredRuns


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """A first pause that is longer than a test, however slow the machine is."""
    _, *later = settings.webhook_retry_seconds
    return replace(settings, webhook_retry_seconds=(120, *later))


@pytest.fixture
def org(connections: Connections, stored: StoredRuns) -> Iterator[Org]:
    """An org whose deliveries end with the test: claims and the retention are of everybody's."""
    yield Org(connections, stored)
    stored_deliveries.delete_all(connections)
