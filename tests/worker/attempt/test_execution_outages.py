"""Attempts while Postgres responds and cannot write, or the process lacks what it needs."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from arkloop.shared.outage_log import OutageLog
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.attempt.executed_runs import scripted, stopped_in_the_middle

pytestmark = pytest.mark.processes


@contextmanager
def full_disk(stored: StoredRuns) -> Iterator[None]:
    """Have Postgres refuse to write runs, as it does on a full disk."""
    refuse = (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';"
        " END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON runs EXECUTE FUNCTION refuse()",
    )
    allow = ("DROP TRIGGER refuse ON runs", "DROP FUNCTION refuse()")

    def execute(*statements: str) -> None:
        with stored.connections.transaction() as tx:
            for statement in statements:
                tx.sql.execute(text(statement))

    execute(*refuse)
    try:
        yield
    finally:
        execute(*allow)


def test_claims_that_fail_are_one_outage_in_the_log(
    stored: StoredRuns,
    process: WorkerProcess,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each queued run is tried every second: the first failure has a line, without statement."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(execution, "_claims", OutageLog(execution.log, "claiming runs"))
    run_ids = [scripted(stored, {"say": "Hello"}) for _ in range(5)]
    with full_disk(stored):
        for run_id in run_ids:
            execution.execute(process, run_id)

    lines = [line.getMessage() for line in caplog.records if "No space left" in line.getMessage()]
    assert 1 == len(lines)
    assert lines[0].startswith("claiming a run failed: could not extend file: No space left")
    assert "UPDATE" not in caplog.text
    assert "abandoning" not in caplog.text
    assert {"queued"} == {stored.state(run_id) for run_id in run_ids}

    execution.execute(process, run_ids[0])

    assert RunState.COMPLETED == stored.state(run_ids[0])
    assert "claiming runs works again" in caplog.text


@pytest.mark.parametrize(
    ("lack", "line", "crashes"),
    [
        (MemoryError(), "abandoning run: no memory is left", 1),
        (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            "abandoning run: [Errno 24] Too many open files",
            0,
        ),
    ],
    ids=["memory", "a file descriptor"],
)
def test_a_run_for_which_the_process_lacks_something_is_queued_again(
    stored: StoredRuns,
    process: WorkerProcess,
    caplog: pytest.LogCaptureFixture,
    lack: Exception,
    line: str,
    crashes: int,
) -> None:
    """It does not fail: another worker may have what this one lacks."""
    run_id = scripted(stored, {"say": "Hello "}, {"say": "x ", "repeat": 500, "delay_ms": 20})
    stopped_in_the_middle(process, stored, run_id, lack)

    eventually(lambda: stored.state(run_id) == RunState.QUEUED)
    assert crashes == stored.row(run_id)["crashes"]
    assert "run.failed" not in stored.types(run_id)
    [abandoning] = [record for record in caplog.records if record.getMessage() == line]
    assert crashes == (abandoning.exc_info is not None)  # of a crash, it says where
