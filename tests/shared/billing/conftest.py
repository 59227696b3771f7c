"""The money of an org, for the tests of billing."""

import pytest

from tests.shared.billing.money import Money
from tests.stored_runs import StoredRuns


@pytest.fixture
def money(stored: StoredRuns) -> Money:
    return Money(stored)
