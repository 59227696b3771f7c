"""The spans of runs: of their creation, and of attempts that no worker is there to record."""

from collections.abc import Iterator

import pytest

from arkloop.shared import spans
from arkloop.shared.ids import span_id_of
from arkloop.shared.runs import recovery, run_spans
from arkloop.shared.spans import Span
from tests.stored_runs import StoredRuns


@pytest.fixture
def recorded() -> Iterator[list[Span]]:
    seen: list[Span] = []
    spans.record_to(seen.append)
    yield seen
    spans.record_to(None)


def test_a_run_is_created_before_it_can_be_claimed(
    stored: StoredRuns, recorded: list[Span]
) -> None:
    """Its span covers the statement that queues it, so no claim can begin before it."""
    claim = stored.claimed(stored.worker())
    [created] = recorded
    assert created.began / 1e9 <= claim.queued_at.timestamp() <= created.ended / 1e9


def test_who_recovers_a_run_records_the_lost_attempt(
    stored: StoredRuns, recorded: list[Span]
) -> None:
    """It has the id that the lost worker has given its calls as their parent, from the claim on."""
    owner = stored.worker()
    claim = stored.claimed(owner)
    recovery.recover_orphan(stored.connections, claim.run_id, owner, claim.fence, True)
    [created, span] = recorded
    assert ("create run", span_id_of(str(claim.run_id))) == (created.name, created.span_id)
    key = run_spans.attempt_key(claim.run_id, claim.fence)
    assert (claim.trace_id, span_id_of(key)) == (span.trace_id, span.span_id)
    assert (span_id_of(str(claim.run_id)), "worker_lost") == (span.parent_id, span.error)
    assert abs(span.began / 1e9 - claim.claimed_at.timestamp()) < 0.01
    assert span.began < span.ended
