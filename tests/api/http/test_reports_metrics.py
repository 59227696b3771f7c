"""Connection metrics: an org's wait for its own report does not count."""

import pytest

from arkloop.api.http.reports import Reports
from arkloop.shared import metrics
from arkloop.shared.errors import RateLimitExceeded
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.counted import counted


def test_reports_that_are_refused_are_no_lack_of_connections(connections: Connections) -> None:
    """An operator is paged for callers without a connection, not for the 429s of one org."""
    reports, org_id = Reports(connections), new_id()
    with (
        counted(metrics.POOL_IN_USE) as in_use,
        counted(metrics.POOL_TIMEOUTS) as timeouts,
        reports.turn(org_id),
    ):
        with pytest.raises(RateLimitExceeded), reports.turn(org_id):
            pass
        assert [{(): [0]}, {(): [0]}] == [in_use, timeouts]
    reports.close()
