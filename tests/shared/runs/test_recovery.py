"""Recovery of the many runs that one worker may have lost."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, func

from arkloop.shared import spans
from arkloop.shared.events.types import MessageCompleted, RunStarted
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import recovery, sweep
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.swept_batches import Left
from arkloop.shared.spans import Span
from arkloop.shared.storage.connections import Connections
from tests.shared.runs.swept_runs import (
    SILENT,
    connections,
    lost,
    nothing_left_over,
    postgres_is_up_for_longer_than_a_lease,
    witness,
)
from tests.stored_runs import StoredRuns

__all__ = [
    "connections",
    "nothing_left_over",
    "postgres_is_up_for_longer_than_a_lease",
    "witness",
]  # fixtures


@contextmanager
def counted(connections: Connections) -> Iterator[list[str]]:
    """Yield the statements that are sent meanwhile."""
    sent: list[str] = []

    def note(*given: Any) -> None:
        sent.append(given[2])

    event.listen(connections.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(connections.engine, "before_cursor_execute", note)


@pytest.fixture(params=["with spans", "without"])
def recorded(request: pytest.FixtureRequest) -> Iterator[list[Span]]:
    seen: list[Span] = []
    if request.param == "with spans":
        spans.record_to(seen.append)
    yield seen
    spans.record_to(None)


@pytest.mark.usefixtures("witness", "recorded")
def test_many_lost_runs_cost_no_more_statements_than_one(stored: StoredRuns) -> None:
    """A busy process takes milliseconds for each round trip."""

    def recover(count: int) -> int:
        claims = [lost(stored) for _ in range(count)]
        with counted(stored.connections) as sent:
            sweep.sweep(stored.connections)
        rows = [stored.row(claim.run_id) for claim in claims]
        assert [(RunState.QUEUED, 1)] * count == [(row["state"], row["crashes"]) for row in rows]
        return len(sent)

    assert recover(1) == recover(30)


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("recorded", ["with spans"], indirect=True)
def test_the_span_of_each_lost_run_begins_at_its_own_claim(
    stored: StoredRuns, recorded: list[Span]
) -> None:
    """All are recovered together, and were claimed one after the other."""
    claims = [lost(stored) for _ in range(3)]
    recorded.clear()

    sweep.sweep(stored.connections)

    began = {span.attributes["arkloop.run.id"]: span.began for span in recorded}
    claimed = {str(claim.run_id): claimed_at(stored, claim.run_id) for claim in claims}
    assert claimed == began
    assert 1 < len(set(began.values()))


def claimed_at(stored: StoredRuns, run_id: UUID) -> int:
    """Return when the run was claimed, in ns since 1970."""
    [started] = [one for one in stored.events(run_id) if one.type == RunStarted.type]
    at = datetime.fromisoformat(json.loads(started.payload)["created_at"])
    return int(at.timestamp() * 1e9)


@pytest.mark.usefixtures("witness")
def test_runs_that_somebody_has_cancelled_are_recovered_first(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel was accepted: its run ends before the others are queued."""
    monkeypatch.setattr(recovery, "BATCH", 1)
    earlier, cancelled = lost(stored), lost(stored, cancel_requested_at=func.now())

    with stored.connections.transaction() as tx:
        assert recovery.recover_batch(tx, Left()), "more may be left"

    assert ("executing", "cancelled") == (
        stored.state(earlier.run_id),
        stored.state(cancelled.run_id),
    )


@pytest.mark.usefixtures("witness")
def test_one_sweep_recovers_more_than_a_batch(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last run of a lost worker waits for no further sweep."""
    monkeypatch.setattr(recovery, "BATCH", 2)
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 600)
    claims = [lost(stored) for _ in range(5)]

    sweep.sweep(stored.connections)

    assert {"queued"} == {stored.state(claim.run_id) for claim in claims}


@pytest.mark.usefixtures("witness")
def test_a_batch_that_cannot_be_recovered_is_not_repeated(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same runs would be found for a second, with two lines each time."""
    monkeypatch.setattr(recovery, "BATCH", 2)
    for _ in range(2):
        lost(stored, fence=2**63 - 1)

    sweep.sweep(stored.connections)

    assert 2 == caplog.text.count("failed; continuing with the others")


@pytest.mark.usefixtures("witness")
def test_one_sweep_ends_more_expired_waits_than_a_batch(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions that were asked together expire together."""
    monkeypatch.setattr(sweep, "BATCH", 2)
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 600)
    claims = [stored.claimed() for _ in range(5)]
    for claim in claims:
        stored.park(claim, new_id(), expires_in=-1)

    sweep.sweep(stored.connections)

    assert {"failed"} == {stored.state(claim.run_id) for claim in claims}


@pytest.mark.usefixtures("witness")
def test_a_run_that_cannot_be_queued_does_not_stop_the_others(stored: StoredRuns) -> None:
    """What fails for all together is done for each by itself."""
    broken, sound = lost(stored, fence=2**63 - 1), lost(stored)

    sweep.sweep(stored.connections)

    assert ("executing", "queued") == (stored.state(broken.run_id), stored.state(sound.run_id))
    assert [sound.run_id] == stored.sent


@pytest.mark.usefixtures("witness")
def test_runs_lost_together_are_counted_each_by_itself(stored: StoredRuns) -> None:
    """A third crash ends a run, unless it has finished a step since it was claimed."""
    moved = stored.claimed()
    stored.write(moved, MessageCompleted("m", "a", Usage()))
    stored.set_worker(stored.row(moved.run_id)["owner"], seen_at=SILENT)
    stored.set(moved.run_id, crashes=2)
    poison, second = lost(stored, crashes=2), lost(stored, crashes=1)

    sweep.sweep(stored.connections)

    rows = [stored.row(claim.run_id) for claim in (poison, second, moved)]
    assert ["failed", "queued", "queued"] == [row["state"] for row in rows]
    assert [2, 1] == [row["crashes"] for row in rows[1:]]
