"""The erasure and the export of persons with more runs than a statement has parameters."""

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.accounts import erasure
from arkloop.shared.files import files
from arkloop.shared.ids import new_id
from arkloop.shared.runs import personal_data
from arkloop.shared.runs.personal_data import Conversations
from arkloop.shared.storage import idempotency
from arkloop.shared.storage.connections import Connections, Transaction, connect
from arkloop.shared.storage.postgres import COMMAND_TIMEOUTS
from tests.end_users import ANN
from tests.stored_runs import StoredRuns

MANY = 66_000
#: Copies of a run in its thread, each with an amount that it has spent with its sub-runs.
_COPIES = """
WITH copied AS (
    INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id,
        model, position, state, queued_at, ended_at, end_user_id)
    SELECT gen_random_uuid(), org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id,
        model, position + n, 'completed', now(), now(), end_user_id
    FROM runs CROSS JOIN generate_series(1, :count) AS n WHERE id = :run
    RETURNING id, org_id
)
INSERT INTO spending (org_id, scope, month) SELECT org_id, 'run:' || id, '1970-01-01' FROM copied
"""


@pytest.fixture
def patient(stored: StoredRuns) -> Iterator[Connections]:
    """Connections as a command has them: with time for very many rows."""
    opened = connect(stored.connections.settings, application="tests", timeouts=COMMAND_TIMEOUTS)
    yield opened
    opened.close()


def test_an_end_user_with_very_many_runs_is_erased(
    stored: StoredRuns, patient: Connections
) -> None:
    """The rows of a whole thread go in one transaction, with what each run has spent."""
    claim = stored.claimed()
    stored.set(claim.run_id, end_user_id=ANN)
    stored.finish(claim)
    whose = {"end_user": ANN, "org": stored.actor.org_id}
    with patient.transaction() as tx:
        thread = "UPDATE threads SET end_user_id = :end_user WHERE org_id = :org"
        tx.sql.execute(text(thread), whose)
        tx.sql.execute(text(_COPIES), {"run": claim.run_id, "count": MANY // 2})

    record = erasure.erase_end_user(patient, stored.actor.org_id, ANN)

    assert MANY // 2 + 1 == record["runs"]
    left = text("SELECT count(*) FROM spending WHERE org_id = :org AND scope LIKE 'run:%'")
    with patient.reading() as sql:
        assert 0 == sql.scalar(left, whose)


def _delete_single(tx: Transaction, ids: list[UUID]) -> None:
    personal_data.delete_single(tx, Conversations((), run_ids=ids, message_ids=ids))


def _forget_prompts(tx: Transaction, ids: list[UUID]) -> None:
    personal_data.forget_prompts(tx, ids, {})


def _first_places(tx: Transaction, ids: list[UUID]) -> None:
    personal_data.first_places(tx.sql, Conversations((), run_ids=ids, message_ids=ids))


def _remove_files(tx: Transaction, ids: list[UUID]) -> None:
    files.remove_all(tx, org_id=new_id(), end_user_id=ANN, file_ids=ids)
    files.remove_all(tx, created_by_user_id=new_id(), file_ids=ids)


def _files(tx: Transaction, ids: list[UUID]) -> None:
    files.of_end_user(tx.sql, new_id(), ANN, ids)


@pytest.mark.parametrize(
    "act",
    [
        *(_delete_single, _first_places, _remove_files, _files),
        *(_forget_prompts, idempotency.forget_actors),
    ],
)
def test_each_step_accepts_very_many_rows(
    patient: Connections, act: Callable[[Transaction, list[UUID]], None]
) -> None:
    """Runs and messages in threads of others, files and API keys are as many as there are."""
    with patient.transaction() as tx:
        act(tx, [new_id()] * MANY)


def test_an_export_accepts_very_many_runs(patient: Connections) -> None:
    """Runs in threads of others are read by their ids."""
    ids = [new_id()] * MANY

    found = personal_data.exported(patient, Conversations((), ids, ids))

    assert [] == list(found)
