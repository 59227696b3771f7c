"""The exceptions with which a run or a model call ends."""

import copy
import pickle
from collections.abc import Callable
from decimal import Decimal

import pytest

from arkloop.worker.contract.outcomes import LimitExceeded, ProviderError, RunFailure, TooLarge

FAILURES = (
    RunFailure("agent.failed", "No.", retryable=True),
    ProviderError("rate_limited", "No.", retry_after=2.5, too_large=TooLarge(limit_tokens=9)),
    LimitExceeded("budget.exhausted", "No.", affordable_usd=Decimal("0.5")),
)


@pytest.mark.parametrize("copied", [copy.copy, lambda failure: pickle.loads(pickle.dumps(failure))])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failure_can_be_copied(
    failure: RunFailure, copied: Callable[[RunFailure], RunFailure]
) -> None:
    """A failure of another process arrives whole: a pool waits forever for one that cannot."""
    made = copied(failure)

    assert (type(failure), "No.") == (type(made), str(made))
    assert vars(failure) == vars(made)
